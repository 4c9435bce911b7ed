package review

import (
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
	"vigil/gateway/internal/events"
)

func hexOf(b []byte) string {
	for _, x := range b {
		if x != 0 {
			return hex.EncodeToString(b)
		}
	}
	return ""
}

func bootOf(r *audit.Record) string {
	return hex.EncodeToString(r.Header[layout.OffBootID : layout.OffBootID+16])
}

// words is a record as people and programs want it.
func words(r *audit.Record, log string) *auditv1.LogRecord {
	le, h := binary.LittleEndian, r.Header
	kind := le.Uint16(h[layout.OffKind:])
	out := &auditv1.LogRecord{
		Position: fmt.Sprintf("%s/%s/%d", log, bootOf(r), r.Sequence), Sequence: r.Sequence,
		TimeNs: le.Uint64(h[layout.OffTimeNs:]), TimeUncertaintyNs: le.Uint64(h[layout.OffTimeUncertaintyNs:]), MonotonicNs: le.Uint64(h[layout.OffMonotonicNs:]),
		Kind: layout.KindNames[kind], EventId: le.Uint32(h[layout.OffEventID:]), Event: events.Names[le.Uint32(h[layout.OffEventID:])],
		StatusCode: le.Uint32(h[layout.OffStatusCode:]), ModelVersion: le.Uint64(h[layout.OffModelVersion:]),
		TraceId: hexOf(h[layout.OffTraceID : layout.OffTraceID+16]), SpanId: hexOf(h[layout.OffSpanID : layout.OffSpanID+8]),
		RequestIdHash: hexOf(h[layout.OffRequestIDHash : layout.OffRequestIDHash+32]), TenantHash: hexOf(h[layout.OffTenantHash : layout.OffTenantHash+32]),
		ModelDigest: hexOf(h[layout.OffModelDigest : layout.OffModelDigest+32]),
		InputHash:   hexOf(h[layout.OffInputHash : layout.OffInputHash+32]), OutputHash: hexOf(h[layout.OffOutputHash : layout.OffOutputHash+32]),
		SafetyState: uint32(h[layout.OffSafetyState]), Quality: uint32(h[layout.OffQuality]),
		ClockSource: uint32(h[layout.OffClockSource]), ClockStatus: uint32(h[layout.OffClockStatus]),
		BatchSize: le.Uint32(h[layout.OffBatchSize:]), BatchRow: le.Uint32(h[layout.OffBatchRow:]), LatencyNs: le.Uint64(h[layout.OffLatencyNs:]),
	}
	setPayload(out, kind, r.Payload)
	return out
}

// setPayload decodes a payload; one that cannot be read is left out, and stands in GetResponse.raw.
func setPayload(out *auditv1.LogRecord, kind uint16, payload []byte) {
	into := func(m proto.Message) bool { return proto.Unmarshal(payload, m) == nil }
	switch kind {
	case layout.KindAnswer, layout.KindRefusal:
		if m := (&auditv1.CallPayload{}); into(m) {
			out.Payload = &auditv1.LogRecord_Call{Call: m}
		}
	case layout.KindModel:
		if m := (&auditv1.ModelPayload{}); into(m) {
			out.Payload = &auditv1.LogRecord_Model{Model: m}
		}
	case layout.KindState:
		if m := (&auditv1.StatePayload{}); into(m) {
			out.Payload = &auditv1.LogRecord_State{State: m}
		}
	case layout.KindSystem:
		if m := (&auditv1.SystemPayload{}); into(m) {
			out.Payload = &auditv1.LogRecord_System{System: m}
		}
	default:
		out.Payload = &auditv1.LogRecord_Note{Note: strings.ToValidUTF8(string(payload), "\uFFFD")}
	}
}

// modelOf is the model that a record is about; empty when it is about none.
func modelOf(r *audit.Record) string {
	kind := binary.LittleEndian.Uint16(r.Header[layout.OffKind:])
	switch kind {
	case layout.KindAnswer, layout.KindRefusal:
		if m := (&auditv1.CallPayload{}); proto.Unmarshal(r.Payload, m) == nil {
			return m.Model
		}
	case layout.KindModel:
		if m := (&auditv1.ModelPayload{}); proto.Unmarshal(r.Payload, m) == nil {
			return m.Model
		}
	}
	return ""
}
