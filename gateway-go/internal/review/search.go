package review

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/audit"
)

const (
	pageBytesMax    = 1 << 20
	pageSizeDefault = 100
	// sameBytes of a token tell whether it belongs to the same search.
	sameBytes = 8
)

func search(task *auditv1.ReadingTask, request *auditv1.SearchRequest) (*auditv1.SearchResponse, error) {
	q, err := queryOf(task, request)
	if err != nil {
		return nil, err
	}
	size := int(request.PageSize)
	if size == 0 {
		size = pageSizeDefault
	}
	page, taken, next := &auditv1.SearchResponse{}, 0, uint64(0)
	done, err := audit.Select(task.Folder, q, func(r *audit.Record) bool {
		record := words(r, task.Log)
		taken += proto.Size(record)
		if len(page.Records) == size || (taken > pageBytesMax && len(page.Records) > 0) {
			next = page.Records[len(page.Records)-1].Sequence
			return false
		}
		page.Records = append(page.Records, record)
		return true
	})
	var damage *audit.Damage
	if errors.As(err, &damage) { // what was found before it is shown
		page.Damage = strings.ToValidUTF8(damage.Error(), "\uFFFD")
	} else if err != nil {
		return nil, err
	}
	if next == 0 {
		next = done.Paused
	}
	if page.RecordsRead = done.Read; next > 0 {
		page.NextPageToken = token(request, next)
	}
	return page, nil
}

func queryOf(task *auditv1.ReadingTask, request *auditv1.SearchRequest) (*audit.Query, error) {
	began, budget, rest := time.Now(), time.Duration(task.BudgetUs)*time.Microsecond, breath{}
	q := &audit.Query{
		FromNs: request.FromNs, ToNs: request.ToNs, Events: request.EventIds, NewestFirst: request.NewestFirst,
		Pause: func() bool { rest.take(); return budget > 0 && time.Since(began) > budget },
	}
	if _, err := hex.Decode(q.TraceID[:], []byte(request.TraceId)); err != nil {
		return nil, err // the contract's rules were run
	}
	for _, hash := range task.TenantHashes {
		q.Tenants = append(q.Tenants, [32]byte(hash))
	}
	if request.Model != "" {
		q.Match = func(r *audit.Record) bool { return modelOf(r) == request.Model }
	}
	if request.PageToken == "" {
		return q, nil
	}
	at, ok := place(request)
	if !ok {
		return nil, &Fault{Code: codes.InvalidArgument, Field: "page_token",
			Text: "page_token is not one that this search gave: send next_page_token with all other fields as they were"}
	}
	if q.NewestFirst {
		q.Before = at
	} else {
		q.After = at
	}
	return q, nil
}

// token is where the next page begins, bound to what is searched for.
func token(request *auditv1.SearchRequest, at uint64) string {
	return base64.RawURLEncoding.EncodeToString(append(binary.BigEndian.AppendUint64(nil, at), same(request)...))
}

func place(request *auditv1.SearchRequest) (uint64, bool) {
	data, err := base64.RawURLEncoding.DecodeString(request.PageToken)
	if err != nil || len(data) != 8+sameBytes || string(data[8:]) != string(same(request)) {
		return 0, false
	}
	return binary.BigEndian.Uint64(data), true
}

func same(request *auditv1.SearchRequest) []byte {
	bare := proto.CloneOf(request)
	bare.PageToken, bare.PageSize = "", 0
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(bare)
	if err != nil {
		return make([]byte, sameBytes)
	}
	sum := sha256.Sum256(data)
	return sum[:sameBytes]
}
