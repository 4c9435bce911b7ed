package edge

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"

	"vigil/gateway/internal/events"
)

type watchKey struct{}

// watchedWriter records an answer of the web transport itself (broken JSON or
// compression, an unknown method, a message too large to be read) before its
// first byte leaves: such a request never reached the service, which records
// everything else.
type watchedWriter struct {
	http.ResponseWriter
	refused func(status int)
	reached bool
}

// leaving is called before headers leave.
func (w *watchedWriter) leaving(status int) {
	if !w.reached {
		w.reached = true
		w.refused(status)
	}
}

func (w *watchedWriter) WriteHeader(status int) {
	if status >= http.StatusOK {
		w.leaving(status)
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *watchedWriter) Write(p []byte) (int, error) {
	w.leaving(http.StatusOK)
	return w.ResponseWriter.Write(p)
}

// Flush is asked for by connect's streams; headers leave with it.
func (w *watchedWriter) Flush() {
	w.leaving(http.StatusOK)
	if f, ok := w.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Unwrap is for http.ResponseController.
func (w *watchedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// reached says that a request came to the service.
func reached(ctx context.Context) {
	if w, ok := ctx.Value(watchKey{}).(*watchedWriter); ok {
		w.reached = true
	}
}

// exempt paths leave no record: health and reflection are reads.
func exempt(path string) bool {
	return strings.HasPrefix(path, "/grpc.health.") || strings.HasPrefix(path, "/grpc.reflection.")
}

// statusSaid is the code that a refusal by the transport gives its caller: gRPC
// has it in the headers or trailers, Connect in the HTTP status.
func statusSaid(header http.Header, status int) (codes.Code, string) {
	for _, name := range []string{"Grpc-Status", http.TrailerPrefix + "Grpc-Status"} {
		if n, err := strconv.ParseUint(header.Get(name), 10, 8); err == nil {
			return codes.Code(n), "refused by the web transport: " + header.Get(strings.Replace(name, "Status", "Message", 1))
		}
	}
	code := codes.InvalidArgument
	switch status {
	case http.StatusNotFound, http.StatusNotImplemented, http.StatusUnsupportedMediaType, http.StatusMethodNotAllowed:
		code = codes.Unimplemented
	case http.StatusTooManyRequests, http.StatusRequestEntityTooLarge:
		code = codes.ResourceExhausted
	case http.StatusGatewayTimeout, http.StatusRequestTimeout:
		code = codes.DeadlineExceeded
	case statusClientClosedRequest:
		code = codes.Canceled
	case http.StatusOK: // gRPC-Web: the code stands in the body, which nobody here has read
		code = codes.Unknown
	}
	return code, fmt.Sprintf("refused by the web transport with HTTP status %d", status)
}

// statusClientClosedRequest is what connect-go answers for a caller that went away.
const statusClientClosedRequest = 499

// watched serves a request so that its refusal by the transport is recorded.
func (w *web) watched(rw http.ResponseWriter, r *http.Request, next http.Handler) {
	if w.service == nil || r.Method != http.MethodPost || exempt(r.URL.Path) {
		next.ServeHTTP(rw, r)
		return
	}
	watched := &watchedWriter{ResponseWriter: rw}
	watched.refused = func(status int) {
		code, text := statusSaid(rw.Header(), status)
		if r.Context().Err() != nil {
			code, text = codes.Canceled, "the caller went away before its request was read"
		}
		w.turnAway(rw, r, events.TransportRefused, code, text)
	}
	next.ServeHTTP(watched, r.WithContext(context.WithValue(r.Context(), watchKey{}, watched)))
	watched.leaving(http.StatusOK) // an answer of headers alone leaves when the handler returns
}

// turnAway records a refusal and puts trace id and position into the answer's headers.
func (w *web) turnAway(rw http.ResponseWriter, r *http.Request, event uint32, code codes.Code, text string) {
	trace := w.tracer.Continue(r.Header.Get("traceparent"))
	rw.Header().Set(TraceHeader, trace.ID())
	if position := w.service.TurnAway(r.URL.Path, event, code, text, &trace); position != "" {
		rw.Header().Set(PositionHeader, position)
	}
}
