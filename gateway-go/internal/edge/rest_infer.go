package edge

import (
	"compress/gzip"
	"compress/zlib"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"vigil/gateway/gen/inference"
	"vigil/gateway/internal/events"
	"vigil/gateway/internal/rest"
)

// HeaderLength says how many bytes of a body are JSON; binary data follows.
const HeaderLength = "Inference-Header-Content-Length"

func bodyStatus(err error) int {
	var large *http.MaxBytesError
	switch {
	case errors.Is(err, errTooManyBytes): // others hold them: it can be tried again
		return http.StatusTooManyRequests
	case errors.As(err, &large), errors.Is(err, errUnpacked):
		return http.StatusRequestEntityTooLarge
	}
	return http.StatusBadRequest
}

// errUnpacked says that a compressed body holds more than may be sent.
var errUnpacked = errors.New("the body unpacks to more bytes than the limit (limits.message_bytes_max)")

// body reads an infer request's body, unpacked, at most twice the largest message: JSON is
// longer than what it stands for. Unpacked bytes count as unfinished until done is called.
func (s *restful) body(rw http.ResponseWriter, r *http.Request) (data []byte, done func(), err error) {
	most := 2 * int64(s.config.Limits.MessageBytesMax)
	var in io.Reader = http.MaxBytesReader(rw, r.Body, most)
	counted := &countedBody{service: s.service}
	switch encoding := r.Header.Get("Content-Encoding"); encoding {
	case "", "identity":
		data, err = io.ReadAll(in)
		return data, func() {}, err
	case "gzip":
		in, err = gzip.NewReader(in)
	case "deflate":
		in, err = zlib.NewReader(in)
	default:
		err = fmt.Errorf("Content-Encoding '%s' is not known; allowed are gzip, deflate and identity", encoding)
	}
	if err != nil {
		return nil, func() {}, err
	}
	counted.ReadCloser = io.NopCloser(in)
	data, err = io.ReadAll(io.LimitReader(counted, most+1))
	if int64(len(data)) > most {
		err = errUnpacked
	}
	return data, counted.close, err
}

func (s *restful) infer(rw http.ResponseWriter, r *http.Request) {
	data, done, err := s.body(rw, r)
	defer done()
	if err != nil {
		s.refuse(rw, r, bodyStatus(err), err)
		return
	}
	object, tail := data, []byte(nil)
	if text := r.Header.Get(HeaderLength); text != "" {
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil || n > uint64(len(data)) {
			s.refuse(rw, r, http.StatusBadRequest, fmt.Errorf("%s is '%s', the body has %d bytes", HeaderLength, text, len(data)))
			return
		}
		object, tail = data[:n], data[n:]
	}
	request, wanted, err := rest.Request(r.PathValue("model"), r.PathValue("version"), object, tail, int64(s.config.Limits.MessageBytesMax))
	if err != nil {
		s.refuse(rw, r, http.StatusBadRequest, err)
		return
	}
	response := &inference.ModelInferResponse{}
	if !s.ask(rw, r, "ModelInfer", request, response) {
		return
	}
	answer, err := rest.Answer(response, wanted)
	if err != nil { // there is an answer, and its record, but no form for it
		s.turnAway(rw, r, events.SemanticViolation, codes.InvalidArgument, "an answer was computed, but "+err.Error())
		writeError(rw, http.StatusBadRequest, err.Error())
		return
	}
	send(rw, r, answer)
}

// send writes an infer answer, compressed as the caller accepts.
func send(rw http.ResponseWriter, r *http.Request, answer *rest.Response) {
	rw.Header().Set("Content-Type", "application/json")
	if len(answer.Binary) > 0 {
		rw.Header().Set("Content-Type", "application/octet-stream")
		rw.Header().Set(HeaderLength, strconv.Itoa(len(answer.Object)))
	}
	var out io.Writer = rw
	var packed io.WriteCloser
	switch encoding := accepted(r.Header.Get("Accept-Encoding")); encoding {
	case "gzip":
		packed = gzip.NewWriter(rw)
	case "deflate":
		packed = zlib.NewWriter(rw)
	}
	if packed != nil {
		rw.Header().Set("Content-Encoding", accepted(r.Header.Get("Accept-Encoding")))
		out = packed
	} else {
		size := len(answer.Object)
		for _, b := range answer.Binary {
			size += len(b)
		}
		rw.Header().Set("Content-Length", strconv.Itoa(size))
	}
	for _, part := range slices.Concat([][]byte{answer.Object}, answer.Binary) {
		_, _ = out.Write(part) // whoever went away needs no answer
	}
	if packed != nil {
		_ = packed.Close()
	}
}

// accepted is the first encoding of a list that is offered here; empty for none.
func accepted(list string) string {
	for _, item := range strings.Split(list, ",") {
		name, parameters, _ := strings.Cut(strings.TrimSpace(item), ";")
		if (name == "gzip" || name == "deflate") && strings.ReplaceAll(parameters, " ", "") != "q=0" {
			return name
		}
	}
	return ""
}
