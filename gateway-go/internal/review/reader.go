// Package review reads audit logs for callers. Each call has a process of its
// own, of the lowest priority, that ends with it: whatever a log holds cannot
// harm the gateway, and reading at full speed leaves the processors and the disk
// to serving (docs/decisions/0013-logs-are-read-elsewhere.md).
package review

import (
	"bufio"
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/reflect/protoreflect"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"
)

const (
	replyBytesMax = 8 << 20
	wordsMax      = 4096
	waitDelay     = time.Second
)

// Fault is why there is no answer, as the caller gets it.
type Fault struct {
	Code  codes.Code
	Text  string
	Field string
}

// Error is the fault's text.
func (f *Fault) Error() string { return f.Text }

// ErrBusy says that as many logs are being read as may be at the same time.
var ErrBusy = errors.New("too many calls read logs")

// Options of a Reader.
type Options struct {
	// Command serves one task on its standard input and output.
	Command []string
	// Folders are the logs' absolute folders, by name.
	Folders map[string]string
	// HashKey of keyed hashes; nil for none.
	HashKey []byte
	Timeout time.Duration
	Most    int64
}

// Reader answers for logs. All methods may be called at the same time.
type Reader struct {
	o      Options
	places chan struct{}
}

// NewReader makes a reader; nothing runs between calls.
func NewReader(o Options) *Reader {
	return &Reader{o, make(chan struct{}, o.Most)}
}

// LogOf is the name of the log that a position is in, as far as it names one.
func (r *Reader) LogOf(at string) (string, error) {
	log, _, _, err := position(at)
	if err != nil {
		return "", err
	}
	if r.o.Folders[log] == "" {
		return "", &Fault{Code: codes.NotFound, Field: "position", Text: fmt.Sprintf("there is no log %q; there are gateway and sidecar", log)}
	}
	return log, nil
}

// Tenants are the hashes under which a tenant's records stand.
func (r *Reader) Tenants(tenant string) [][]byte {
	if tenant == "" {
		return nil
	}
	plain := sha256.Sum256([]byte(tenant))
	hashes := [][]byte{plain[:]}
	if r.o.HashKey != nil {
		mac := hmac.New(sha256.New, r.o.HashKey)
		mac.Write(plain[:])
		hashes = append(hashes, mac.Sum(nil))
	}
	return hashes
}

// Read runs a task over a log and gives each message of its answer, encoded, in
// order. The error is a *Fault, ErrBusy, the context's, what each returned, or a
// fault of ours.
func (r *Reader) Read(ctx context.Context, log string, task *auditv1.ReadingTask, each func([]byte) error) error {
	select {
	case r.places <- struct{}{}:
	default:
		return ErrBusy
	}
	ctx, cancel := context.WithTimeout(ctx, r.o.Timeout)
	defer cancel()
	// The place is the process's: a caller who does not take the answer keeps none.
	release := sync.OnceFunc(func() { <-r.places })
	defer release()
	context.AfterFunc(ctx, release)
	bare(task)
	task.Log, task.Folder = log, r.o.Folders[log]
	if end, ok := ctx.Deadline(); ok { // a fifth is left for the process and the way back
		task.BudgetUs = uint64(max(1, time.Until(end).Microseconds()*4/5))
	}
	cmd := exec.CommandContext(ctx, r.o.Command[0], r.o.Command[1:]...)
	cmd.Env = []string{"GOMEMLIMIT=256MiB", "GOMAXPROCS=1"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a terminal's Ctrl-C is for the gateway
	cmd.WaitDelay = waitDelay
	said := &tail{}
	cmd.Stderr = said
	in, err := cmd.StdinPipe() // stays open while the task runs: its end tells that we are gone
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	_, err = protodelim.MarshalTo(in, task)
	if err == nil {
		err = replies(out, each)
	}
	ended := ctx.Err() // then the process was killed
	if err != nil {
		cancel() // nobody reads on
	}
	_ = in.Close()
	waited := cmd.Wait()
	var fault *Fault
	switch {
	case errors.As(err, &fault):
		return err
	case err == nil && waited == nil:
		return nil
	case ended != nil && (err == nil || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE)):
		return ended
	case err == nil:
		err = waited
	}
	return fmt.Errorf("the reading process: %w: %s", err, said.last)
}

// bare takes unknown fields out of a request: its known ones are bounded by rules.
func bare(task *auditv1.ReadingTask) {
	task.ProtoReflect().Range(func(_ protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		if m, ok := v.Interface().(protoreflect.Message); ok {
			m.SetUnknown(nil)
		}
		return true
	})
}

func replies(out io.Reader, each func([]byte) error) error {
	in, got := bufio.NewReader(out), false
	for {
		reply := &auditv1.ReadingReply{}
		err := (protodelim.UnmarshalOptions{MaxSize: replyBytesMax}).UnmarshalFrom(in, reply)
		if err == io.EOF && got {
			return nil
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return err
		}
		if f := reply.Fault; f != nil {
			return &Fault{codes.Code(f.Code), f.Text, f.Field}
		}
		if err := each(reply.Message); err != nil {
			return err
		}
		got = true
	}
}

// tail keeps the last of what a process says.
type tail struct{ last []byte }

// Write keeps at most wordsMax bytes.
func (t *tail) Write(b []byte) (int, error) {
	t.last = append(t.last, b...)
	if over := len(t.last) - wordsMax; over > 0 {
		t.last = bytes.Clone(t.last[over:])
	}
	return len(b), nil
}
