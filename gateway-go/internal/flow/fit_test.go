package flow

import (
	"encoding/base64"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/internal/rules"
)

// Whatever a caller sent, the error about it fits into the 8 KiB of trailers
// that clients take, and still says which field is wrong.
func TestErrorsFitIntoTrailers(t *testing.T) {
	for _, letter := range []string{"a", "é", "😀", "\xff"} {
		for _, size := range []int{1, 100, 2048, 60000} {
			for _, count := range []int{0, 1, 40, 500} {
				e := &CallError{Code: codes.InvalidArgument, Reason: "CONTRACT_VIOLATION", Text: strings.Repeat(letter, size)}
				for i := range count {
					value := strings.Repeat(letter, size)
					e.Violations = append(e.Violations, rules.Violation{Field: fmt.Sprintf("f%d", i) + value, Description: value})
				}
				s := e.Status(strings.Repeat("0", 32))
				details, err := proto.Marshal(s)
				if err != nil {
					t.Fatal(err)
				}
				sent := len(url.PathEscape(s.Message)) + base64.StdEncoding.EncodedLen(len(details))
				if sent > 7000 {
					t.Errorf("%d of %q, %d violations: %d bytes of trailers", size, letter, count, sent)
				}
				if count == 0 {
					continue
				}
				bad := &errdetails.BadRequest{}
				if err := s.Details[0].UnmarshalTo(bad); err != nil || !strings.HasPrefix(bad.FieldViolations[0].Field, "f0") {
					t.Errorf("%d of %q, %d violations: %v %v", size, letter, count, bad, err)
				}
				told, more := len(bad.FieldViolations), 0
				if last := bad.FieldViolations[told-1]; last.Field == "" {
					_, _ = fmt.Sscanf(last.Description, "%d more", &more)
					told--
				}
				if told+more != count {
					t.Errorf("%d of %q: %d of %d violations told, and %d more", size, letter, told, count, more)
				}
			}
		}
	}
}
