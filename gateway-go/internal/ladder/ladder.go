// Package ladder answers calls in place of a model: with its last good answer, or
// with constants. It knows messages, not the way they take.
package ladder

import (
	"crypto/sha256"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"google.golang.org/protobuf/proto"

	"vigil/gateway/gen/inference"
	linkv1 "vigil/gateway/gen/vigil/link/v1"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
)

// What stood in, as answers and records say it.
const (
	LastGood  = "last_good"
	Constants = "constants"
)

// Model is how a record, and an answer, name the model that stood in.
func Model(name string) string { return "model " + name }

// Key tells answers apart that may stand in for one another.
type Key [sha256.Size]byte

// SourceParameter names the source of a ModelInfer request.
const SourceParameter = "vigil_source"

// KeyOf is the key of a request; false when it names no source, and so has no last
// good answer. The version that serves counts, so that no other one's answer is given. Requests have the same key when they have the same tenant, model,
// version, source and parameters, the same inputs but for their contents, and the
// same outputs.
func (l Ladder) KeyOf(tenant string, request proto.Message) (Key, bool) {
	var same proto.Message
	switch r := request.(type) {
	case *inference.ModelInferRequest:
		if r.Parameters[SourceParameter].GetStringParam() == "" {
			return Key{}, false
		}
		form := &inference.ModelInferRequest{ModelName: r.ModelName, ModelVersion: r.ModelVersion, Parameters: r.Parameters, Outputs: r.Outputs}
		for _, t := range r.Inputs {
			form.Inputs = append(form.Inputs, &inference.ModelInferRequest_InferInputTensor{
				Name: t.Name, Datatype: t.Datatype, Shape: t.Shape, Parameters: t.Parameters,
			})
		}
		same = form
	case *perceptionv1.DetectRequest:
		same = &perceptionv1.DetectRequest{SourceId: r.SourceId, Model: r.Model, ModelVersion: r.ModelVersion, MinConfidence: r.MinConfidence}
	default:
		return Key{}, false
	}
	// SR-012
	data := append([]byte(strconv.Quote(tenant)+l.Digest), same.ProtoReflect().Descriptor().FullName()...)
	data, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(data, same)
	if err != nil {
		return Key{}, false
	}
	return sha256.Sum256(data), true
}

// Good is an answer that was given, with the position of its record.
type Good struct {
	Message  []byte
	Position string
	Version  string
	// Given is when its call came: what it says is at least so old.
	Given time.Time
}

// Cache keeps the latest good answer of each key, bounded in number and bytes: the
// one not asked for longest goes first. Its methods may be called at the same time.
type Cache struct {
	mu       sync.Mutex
	answers  *simplelru.LRU[Key, *Good]
	bytes    int64
	bytesMax int64
}

// NewCache makes a cache of at most so many answers and bytes.
func NewCache(answersMax int, bytesMax int64) *Cache {
	c := &Cache{bytesMax: bytesMax}
	answers, err := simplelru.NewLRU(max(1, answersMax), func(_ Key, g *Good) { c.bytes -= int64(len(g.Message)) })
	if err != nil {
		panic(err) // only for a size below 1
	}
	c.answers = answers
	return c
}

// Keep notes a good answer. One larger than the whole cache is not kept.
func (c *Cache) Keep(key Key, g *Good) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if before, ok := c.answers.Peek(key); ok && before.Given.After(g.Given) {
		return // an older call that took longer
	}
	c.answers.Remove(key)
	if int64(len(g.Message)) > c.bytesMax {
		return
	}
	c.bytes += int64(len(g.Message))
	c.answers.Add(key, g)
	for c.bytes > c.bytesMax {
		c.answers.RemoveOldest()
	}
}

// Get is the good answer of a key no older than limit; nil for none.
func (c *Cache) Get(key Key, limit time.Duration, now time.Time) *Good {
	c.mu.Lock()
	defer c.mu.Unlock()
	g, ok := c.answers.Get(key)
	// SR-011
	if !ok || now.Sub(g.Given) > limit {
		return nil
	}
	return g
}

// Size is how many answers and bytes are kept.
func (c *Cache) Size() (int, int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.answers.Len(), c.bytes
}

// Answer is what stood in, ready but for the position of its record.
type Answer struct {
	// Quality is "cache" or "rule", as metrics, trailers and parameters say it.
	Quality, Source    string
	Age                time.Duration
	First              *Good
	ModelVersion       string
	ModelDigest        [sha256.Size]byte
	InputHash, OutHash [sha256.Size]byte
	encode             func(position, traceID string) ([]byte, error)
}

// Encode makes the message; for a typed answer with the position of its record.
func (a *Answer) Encode(position, traceID string) ([]byte, error) { return a.encode(position, traceID) }

// Ladder is what stands in for one model.
type Ladder struct{ *linkv1.Ladder }

// LastGoodMax is how old a last good answer may be.
func (l Ladder) LastGoodMax() time.Duration { return time.Duration(l.LastGoodMs) * time.Millisecond }

// Serves says whether a request is for the version that serves; what stands in does so
// for that one only.
func (l Ladder) Serves(request proto.Message) bool {
	version := ""
	if r, ok := request.(interface{ GetModelVersion() string }); ok {
		version = r.GetModelVersion()
	}
	return version == "" || version == l.Version
}

// Repeat gives a good answer again for another request. An error says why it does
// not fit, or an *InvalidError what is wrong with the request.
func (l Ladder) Repeat(request proto.Message, g *Good, now time.Time) (*Answer, error) {
	out := &Answer{Quality: "cache", Source: LastGood, Age: max(0, now.Sub(g.Given)), First: g, ModelVersion: g.Version}
	switch r := request.(type) {
	case *inference.ModelInferRequest:
		return out, l.repeatInfer(r, g, out)
	case *perceptionv1.DetectRequest:
		return out, l.repeatDetect(r, g, out)
	}
	return nil, errNone
}

// Constant answers a request with the constants; errNone when there are none.
func (l Ladder) Constant(request proto.Message) (*Answer, error) {
	out := &Answer{Quality: "rule", Source: Constants}
	switch r := request.(type) {
	case *inference.ModelInferRequest:
		return out, l.constantInfer(r, out)
	case *perceptionv1.DetectRequest:
		return out, l.constantDetect(r, out)
	}
	return nil, errNone
}

// Fallback is the request as the fallback model gets it; nil when there is none.
func (l Ladder) Fallback(request proto.Message) []byte {
	if l.FallbackModel == "" {
		return nil
	}
	if _, tensors := request.(*inference.ModelInferRequest); tensors && l.FallbackDetectsOnly {
		return nil
	}
	var changed proto.Message
	switch r := request.(type) {
	case *inference.ModelInferRequest:
		// Only the head is copied: contents can be large.
		changed = &inference.ModelInferRequest{ModelName: l.FallbackModel, Id: r.Id, Parameters: r.Parameters, Inputs: r.Inputs,
			Outputs: r.Outputs, RawInputContents: r.RawInputContents}
	case *perceptionv1.DetectRequest:
		changed = &perceptionv1.DetectRequest{SourceId: r.SourceId, CaptureTimeUs: r.CaptureTimeUs, Frame: r.Frame, Model: l.FallbackModel,
			MinConfidence: r.MinConfidence, RequestId: r.RequestId}
	default:
		return nil
	}
	data, err := proto.Marshal(changed)
	if err != nil {
		return nil
	}
	return data
}
