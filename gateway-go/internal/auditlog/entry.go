// Package auditlog writes the gateway's audit log. Its format is
// docs/audit-format.md; reading and verifying is package audit, which shares
// nothing with this one but the generated layout.
package auditlog

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"vigil/gateway/audit/layout"
)

// ErrFailed says that the log cannot be written: refuse calls until it can.
var ErrFailed = errors.New("the audit log cannot be written")

// errClosed says that the log was closed: the process ends.
var errClosed = fmt.Errorf("%w: it is closed", ErrFailed)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry is what a caller says about one event; zero values mean "none".
type Entry struct {
	Kind          uint16
	EventID       uint32
	SafetyState   uint8
	Quality       uint8
	StatusCode    uint32
	TraceID       [16]byte
	SpanID        [8]byte
	LatencyNs     uint64
	BatchSize     uint32
	RequestIDHash [32]byte
	TenantHash    [32]byte
	ModelDigest   [32]byte
	ModelVersion  uint64
	InputHash     [32]byte
	OutputHash    [32]byte
	Payload       []byte
}

type stamp struct {
	instance, boot [16]byte
	timeNs, monoNs uint64
	uncertaintyNs  uint64
	source, status uint8
	// hashKey of keyed hashes; nil leaves them plain.
	hashKey []byte
}

// keyed is the HMAC of a hash, where there is a key and a hash.
func (s *stamp) keyed(hash *[32]byte) []byte {
	if s.hashKey == nil || *hash == [32]byte{} {
		return hash[:]
	}
	h := hmac.New(sha256.New, s.hashKey)
	h.Write(hash[:])
	return h.Sum(nil)
}

// SafetyCode is the number of a safety state in a record.
func SafetyCode(state string) uint8 {
	switch state {
	case "STARTING":
		return 1
	case "NORMAL":
		return 2
	case "DEGRADED":
		return 3
	case "RECOVERING":
		return 4
	case "SAFE_STOP":
		return 5
	}
	return 0
}

// encode appends the record to dst.
func encode(dst []byte, e *Entry, s *stamp, sequence uint64, previous *[32]byte) []byte {
	payload := e.Payload[:min(len(e.Payload), layout.RecordBytesMax-layout.HeaderBytes)]
	at := len(dst)
	dst = append(dst, make([]byte, layout.HeaderBytes)...)
	r := dst[at:]
	le := binary.LittleEndian
	copy(r[layout.OffMagic:], layout.Magic)
	le.PutUint16(r[layout.OffVersion:], layout.Version)
	le.PutUint16(r[layout.OffLength:], uint16(layout.HeaderBytes+len(payload)))
	le.PutUint16(r[layout.OffKind:], e.Kind)
	le.PutUint32(r[layout.OffEventID:], e.EventID)
	copy(r[layout.OffInstance:], s.instance[:])
	copy(r[layout.OffBootID:], s.boot[:])
	le.PutUint64(r[layout.OffSequence:], sequence)
	le.PutUint64(r[layout.OffTimeNs:], s.timeNs)
	le.PutUint64(r[layout.OffMonotonicNs:], s.monoNs)
	le.PutUint64(r[layout.OffTimeUncertaintyNs:], s.uncertaintyNs)
	r[layout.OffClockSource], r[layout.OffClockStatus] = s.source, s.status
	r[layout.OffSafetyState], r[layout.OffQuality] = e.SafetyState, e.Quality
	le.PutUint32(r[layout.OffStatusCode:], e.StatusCode)
	copy(r[layout.OffTraceID:], e.TraceID[:])
	copy(r[layout.OffSpanID:], e.SpanID[:])
	le.PutUint64(r[layout.OffLatencyNs:], e.LatencyNs)
	le.PutUint32(r[layout.OffBatchSize:], e.BatchSize)
	copy(r[layout.OffRequestIDHash:], s.keyed(&e.RequestIDHash))
	copy(r[layout.OffTenantHash:], s.keyed(&e.TenantHash))
	copy(r[layout.OffModelDigest:], e.ModelDigest[:])
	le.PutUint64(r[layout.OffModelVersion:], e.ModelVersion)
	copy(r[layout.OffInputHash:], s.keyed(&e.InputHash))
	copy(r[layout.OffOutputHash:], s.keyed(&e.OutputHash))
	if s.hashKey != nil {
		le.PutUint16(r[layout.OffFlags:], layout.FlagKeyed)
	}
	copy(r[layout.OffPreviousLeafHash:], previous[:])
	crc := crc32.Update(0, castagnoli, r[:layout.OffCrc32c])
	le.PutUint32(r[layout.OffCrc32c:], crc32.Update(crc, castagnoli, payload))
	return append(dst, payload...)
}
