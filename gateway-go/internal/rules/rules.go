// Package rules runs the contract's rules (protoc-gen-validate) on messages of
// clients and names every violated field by its path in the contract.
package rules

import (
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Violation is one violated field.
type Violation struct{ Field, Description string }

// Error says that a message breaks the contract.
type Error struct{ Violations []Violation }

func (e *Error) Error() string {
	parts := make([]string, 0, min(len(e.Violations), 10))
	for _, v := range e.Violations[:min(len(e.Violations), 10)] {
		text := strings.TrimSpace(v.Field + " " + v.Description)
		parts = append(parts, strings.ToValidUTF8(text[:min(len(text), 200)], ""))
	}
	return "contract violation: " + strings.Join(parts, ", ")
}

// What protoc-gen-validate generates.
type validator interface{ ValidateAll() error }
type multiError interface{ AllErrors() []error }
type fieldError interface {
	Field() string
	Reason() string
	Cause() error
}

// Decode parses a message of the given type and runs its rules. The error is
// an *Error in both cases.
func Decode(kind protoreflect.MessageType, data []byte) (proto.Message, error) {
	if err := measure(kind.Descriptor(), data); err != nil {
		return nil, err
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(data, m); err != nil {
		text := fmt.Sprintf("the message is not a %s", kind.Descriptor().FullName())
		return nil, &Error{[]Violation{{"", text}}}
	}
	// SR-005
	return m, Check(m)
}

// Check runs the rules of a message.
func Check(m proto.Message) error {
	v, ok := m.(validator)
	if !ok {
		return nil
	}
	err := v.ValidateAll()
	if err == nil {
		return nil
	}
	found := collect(nil, "", m.ProtoReflect().Descriptor(), err)
	if len(found) == 0 {
		found = []Violation{{"", err.Error()}}
	}
	return &Error{found}
}

func collect(out []Violation, prefix string, d protoreflect.MessageDescriptor, err error) []Violation {
	if many, ok := err.(multiError); ok {
		for _, e := range many.AllErrors() {
			out = collect(out, prefix, d, e)
		}
		return out
	}
	f, ok := err.(fieldError)
	if !ok {
		return out
	}
	name, index := f.Field(), ""
	if at := strings.IndexByte(name, '['); at >= 0 {
		name, index = name[:at], name[at:]
	}
	field := find(d, name)
	if field != nil {
		name = string(field.Name())
	} else if o := findOneof(d, name); o != nil {
		name = string(o.Name())
	}
	path := prefix + name + index
	if f.Cause() != nil && field != nil && field.Message() != nil {
		inner := field.Message()
		if field.IsMap() {
			inner = field.MapValue().Message()
		}
		if inner != nil {
			return collect(out, path+".", inner, f.Cause())
		}
	}
	return append(out, Violation{path, f.Reason()})
}

// find gives the field whose Go name protoc-gen-validate reports.
func find(d protoreflect.MessageDescriptor, goName string) protoreflect.FieldDescriptor {
	fields := d.Fields()
	for i := range fields.Len() {
		if camel(string(fields.Get(i).Name())) == goName {
			return fields.Get(i)
		}
	}
	return nil
}

func findOneof(d protoreflect.MessageDescriptor, goName string) protoreflect.OneofDescriptor {
	oneofs := d.Oneofs()
	for i := range oneofs.Len() {
		if camel(string(oneofs.Get(i).Name())) == goName {
			return oneofs.Get(i)
		}
	}
	return nil
}

// camel is the Go name of a field, as protoc-gen-go forms it for lower_snake names.
func camel(name string) string {
	var b strings.Builder
	upper := true
	for _, r := range name {
		switch {
		case r == '_':
			upper = true
		case upper:
			b.WriteString(strings.ToUpper(string(r)))
			upper = false
		default:
			b.WriteRune(r)
		}
	}
	return b.String()
}
