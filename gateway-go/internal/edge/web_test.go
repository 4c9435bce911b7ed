package edge

import (
	"io"
	"net"
	"net/http"
	"testing"
	"time"
)

// A connection that speaks HTTP/2 without TLS outlives the time limit for reading
// headers, with the call that is under way.
func TestHTTP2OutlivesTheHeaderTimeout(t *testing.T) {
	const limit = 200 * time.Millisecond
	server := NewWebServer(http.HandlerFunc(func(rw http.ResponseWriter, _ *http.Request) {
		for range 4 {
			_, _ = rw.Write([]byte("x"))
			_ = http.NewResponseController(rw).Flush()
			time.Sleep(limit)
		}
	}), Limits{HeaderBytesMax: 1 << 14, StreamsPerConnectionMax: 10})
	server.ReadHeaderTimeout = limit
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = server.Serve(listener) }()
	defer server.Close()
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	client := http.Client{Transport: &http.Transport{Protocols: protocols}}
	reply, err := client.Get("http://" + listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if body, err := io.ReadAll(reply.Body); err != nil || string(body) != "xxxx" || reply.ProtoMajor != 2 {
		t.Fatalf("%q %v over %s", body, err, reply.Proto)
	}
}
