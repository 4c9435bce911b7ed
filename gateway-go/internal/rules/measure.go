package rules

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Limits of a message's structure, asked before it is decoded: two bytes on the
// wire may become hundreds in memory.
const (
	nestedMax = 16384   // messages within a message, map entries included
	valuesMax = 1 << 20 // strings and byte strings
	depthMax  = 32
)

type measurement struct{ nested, values int }

// measure walks the encoding without building anything. Malformed bytes are
// left to the decoder.
func measure(d protoreflect.MessageDescriptor, data []byte) error {
	m := &measurement{}
	return m.walk(d, data, 0)
}

func (m *measurement) walk(d protoreflect.MessageDescriptor, data []byte, depth int) error {
	if depth > depthMax {
		return &Error{[]Violation{{"", fmt.Sprintf("messages are nested deeper than %d", depthMax)}}}
	}
	for len(data) > 0 {
		number, kind, n := protowire.ConsumeTag(data)
		if n < 0 {
			return nil
		}
		data = data[n:]
		if kind != protowire.BytesType {
			if n = protowire.ConsumeFieldValue(number, kind, data); n < 0 {
				return nil
			}
			data = data[n:]
			continue
		}
		value, n := protowire.ConsumeBytes(data)
		if n < 0 {
			return nil
		}
		data = data[n:]
		field := d.Fields().ByNumber(number)
		if field == nil || field.Message() == nil {
			// SR-006
			if m.values++; m.values > valuesMax {
				return tooMany(field, "values", valuesMax)
			}
			continue
		}
		if m.nested++; m.nested > nestedMax {
			return tooMany(field, "messages", nestedMax)
		}
		if err := m.walk(field.Message(), value, depth+1); err != nil {
			return err
		}
	}
	return nil
}

func tooMany(field protoreflect.FieldDescriptor, what string, limit int) error {
	name := ""
	if field != nil {
		name = string(field.Name())
	}
	return &Error{[]Violation{{name, fmt.Sprintf("makes more than %d %s in one message", limit, what)}}}
}
