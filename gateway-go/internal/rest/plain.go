package rest

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Plain is a message as Triton's REST form has it: names of the contract, every field
// that is not a message or one of several choices also when it has its default, numbers
// of 64 bits as numbers, values of enums by name.
func Plain(m proto.Message) map[string]any { return plainMessage(m.ProtoReflect()) }

func plainMessage(m protoreflect.Message) map[string]any {
	out := map[string]any{}
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		f := fields.Get(i)
		if f.HasPresence() && !m.Has(f) {
			continue
		}
		name, value := string(f.Name()), m.Get(f)
		switch {
		case f.IsMap():
			entries := map[string]any{}
			value.Map().Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
				entries[k.String()] = plainValue(f.MapValue(), v)
				return true
			})
			out[name] = entries
		case f.IsList():
			items := []any{}
			for j := range value.List().Len() {
				items = append(items, plainValue(f, value.List().Get(j)))
			}
			out[name] = items
		default:
			out[name] = plainValue(f, value)
		}
	}
	return out
}

func plainValue(f protoreflect.FieldDescriptor, v protoreflect.Value) any {
	switch f.Kind() {
	case protoreflect.MessageKind:
		return plainMessage(v.Message())
	case protoreflect.EnumKind:
		if value := f.Enum().Values().ByNumber(v.Enum()); value != nil {
			return string(value.Name())
		}
		return int32(v.Enum())
	}
	return v.Interface()
}
