// Package rest translates between the Open Inference Protocol's REST form (JSON, with the
// binary tensor data extension) and its gRPC messages. It is pure: no network, no
// clock. Sources: KServe's "Open Inference Protocol" V2 REST and Triton's
// "Binary tensor data extension".
package rest

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
)

// kind is how elements of a datatype stand in JSON and in raw contents.
type kind struct {
	size   int                                            // bytes of an element; 0: each has its own length
	encode func(dst []byte, token []byte) ([]byte, error) // appends one element
	decode func(dst []byte, raw []byte) ([]byte, error)   // appends one element as JSON
}

var errNotFinite = errors.New("holds a value that JSON does not have (NaN or infinite); ask for it as binary data")

var kinds = map[string]kind{
	"BOOL":  {1, encodeBool, decodeBool},
	"UINT8": unsigned(1), "UINT16": unsigned(2), "UINT32": unsigned(4), "UINT64": unsigned(8),
	"INT8": signed(1), "INT16": signed(2), "INT32": signed(4), "INT64": signed(8),
	"FP32": floating(4), "FP64": floating(8),
	"FP16": {size: 2}, "BF16": {size: 2},
	"BYTES": {0, encodeString, nil},
}

// putInt appends the lowest bytes of a number, little-endian.
func putInt(dst []byte, n uint64, size int) []byte {
	return append(dst, binary.LittleEndian.AppendUint64(nil, n)[:size]...)
}

func getInt(raw []byte) uint64 {
	var full [8]byte
	copy(full[:], raw)
	return binary.LittleEndian.Uint64(full[:])
}

func badNumber(token []byte, err error, least, most any) error {
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("%s is outside %v..%v", shown(token), least, most)
	}
	return fmt.Errorf("%s is not a whole number of %v..%v", shown(token), least, most)
}

func unsigned(size int) kind {
	most := uint64(math.MaxUint64) >> (64 - 8*size)
	return kind{
		size,
		func(dst, token []byte) ([]byte, error) {
			n, err := strconv.ParseUint(string(token), 10, 8*size)
			if err != nil {
				return dst, badNumber(token, err, 0, most)
			}
			return putInt(dst, n, size), nil
		},
		func(dst, raw []byte) ([]byte, error) { return strconv.AppendUint(dst, getInt(raw), 10), nil },
	}
}

func signed(size int) kind {
	shift := 64 - 8*size
	return kind{
		size,
		func(dst, token []byte) ([]byte, error) {
			n, err := strconv.ParseInt(string(token), 10, 8*size)
			if err != nil {
				return dst, badNumber(token, err, int64(math.MinInt64)>>shift, int64(math.MaxInt64)>>shift)
			}
			return putInt(dst, uint64(n), size), nil
		},
		func(dst, raw []byte) ([]byte, error) {
			return strconv.AppendInt(dst, int64(getInt(raw)<<shift)>>shift, 10), nil
		},
	}
}

func floating(size int) kind {
	bits := 8 * size
	return kind{
		size,
		func(dst, token []byte) ([]byte, error) {
			x, err := strconv.ParseFloat(string(token), bits)
			switch {
			case errors.Is(err, strconv.ErrRange):
				return dst, fmt.Errorf("%s is beyond the range of FP%d", shown(token), bits)
			case err != nil:
				return dst, fmt.Errorf("%s is not a number", shown(token))
			case bits == 32:
				return putInt(dst, uint64(math.Float32bits(float32(x))), size), nil
			}
			return putInt(dst, math.Float64bits(x), size), nil
		},
		func(dst, raw []byte) ([]byte, error) {
			x := math.Float64frombits(getInt(raw))
			if bits == 32 {
				x = float64(math.Float32frombits(uint32(getInt(raw))))
			}
			if math.IsNaN(x) || math.IsInf(x, 0) {
				return dst, errNotFinite
			}
			return strconv.AppendFloat(dst, x, 'g', -1, bits), nil
		},
	}
}

func encodeBool(dst, token []byte) ([]byte, error) {
	switch string(token) {
	case "true", "1":
		return append(dst, 1), nil
	case "false", "0":
		return append(dst, 0), nil
	}
	return dst, fmt.Errorf("%s is neither true nor false", shown(token))
}

func decodeBool(dst, raw []byte) ([]byte, error) { return strconv.AppendBool(dst, raw[0] != 0), nil }

// encodeString appends an element of BYTES: its length, then its bytes.
func encodeString(dst, token []byte) ([]byte, error) {
	if token[0] != '"' {
		return dst, fmt.Errorf("%s is not a string", shown(token))
	}
	var text string
	if err := json.Unmarshal(token, &text); err != nil {
		return dst, err
	}
	return append(binary.LittleEndian.AppendUint32(dst, uint32(len(text))), text...), nil
}

// shown is a token as an error names it.
func shown(token []byte) string {
	const most = 40
	if len(token) > most {
		return string(token[:most]) + "..."
	}
	return string(token)
}
