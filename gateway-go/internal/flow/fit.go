package flow

import (
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// A client of gRPC's core takes at most 8 KiB of trailers, and gives its caller
// RESOURCE_EXHAUSTED in place of what they say when they are more. A message
// outside ASCII takes three bytes a byte there, and details four for three, so
// that these leave room for the trailers of Vigil.
const (
	messageBytes   = 600
	violationBytes = 2400
	detailBytes    = 3600
)

// fit makes an error one that every client can read: long texts, which quote
// what a caller sent, are cut, and what is left out is counted. The status of
// another owner is not changed, but copied.
func fit(s *statuspb.Status) *statuspb.Status {
	if len(s.Message) <= messageBytes && proto.Size(s) <= detailBytes {
		return s
	}
	s = proto.Clone(s).(*statuspb.Status)
	s.Message = cut(s.Message, messageBytes)
	for i, detail := range s.Details {
		bad := &errdetails.BadRequest{}
		if !detail.MessageIs(bad) || detail.UnmarshalTo(bad) != nil {
			continue
		}
		bad.FieldViolations = fitViolations(bad.FieldViolations)
		if packed, err := anypb.New(bad); err == nil {
			s.Details[i] = packed
		}
	}
	return s
}

func fitViolations(all []*errdetails.BadRequest_FieldViolation) []*errdetails.BadRequest_FieldViolation {
	size := 0
	for i, v := range all {
		v.Field, v.Description = cut(v.Field, 200), cut(v.Description, 400)
		if size += len(v.Field) + len(v.Description) + 8; size > violationBytes {
			left := len(all) - i
			if last := all[len(all)-1]; last.Field == "" && len(all) > violationsShown { // it stands for those left out before
				var more int
				if _, err := fmt.Sscanf(last.Description, "%d more", &more); err == nil {
					left += more - 1
				}
			}
			return append(all[:i:i], &errdetails.BadRequest_FieldViolation{Description: fmt.Sprintf("%d more fields are violated", left)})
		}
	}
	return all
}

func cut(text string, size int) string {
	if len(text) <= size {
		return text
	}
	return clip(text, size-len("…")) + "…"
}
