package ladder

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"image"
	_ "image/jpeg" // for the size of a frame
	_ "image/png"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"vigil/gateway/audit"
	perceptionv1 "vigil/gateway/gen/vigil/perception/v1"
)

// errOther says that a last good answer is of frames of another size.
var errOther = errors.New("the last good answer is of frames of another size")

// frame is a request's picture: its bytes as they are hashed, and its size.
func frame(r *perceptionv1.DetectRequest) (data []byte, width, height uint32, err error) {
	if raw := r.Frame.GetRaw(); raw != nil {
		if need := 3 * uint64(raw.Width) * uint64(raw.Height); uint64(len(raw.Rgb)) != need {
			return nil, 0, 0, wrong("frame.raw.rgb", fmt.Sprintf("%dx%d pixels need %d bytes, got %d", raw.Width, raw.Height, need, len(raw.Rgb)))
		}
		return raw.Rgb, raw.Width, raw.Height, nil
	}
	data = r.Frame.GetEncoded()
	config, _, err := image.DecodeConfig(bytes.NewReader(data))
	if err != nil {
		return nil, 0, 0, wrong("frame.encoded", "is no JPEG or PNG picture")
	}
	return data, uint32(config.Width), uint32(config.Height), nil
}

func (l Ladder) repeatDetect(r *perceptionv1.DetectRequest, g *Good, out *Answer) error {
	data, width, height, err := frame(r)
	if err != nil {
		return err
	}
	response := &perceptionv1.DetectResponse{}
	if err := proto.Unmarshal(g.Message, response); err != nil || response.Output == nil {
		return errNone
	}
	o := response.Output
	if o.FrameWidth != width || o.FrameHeight != height {
		return errOther
	}
	if digest, err := hex.DecodeString(o.ModelDigest); err == nil {
		copy(out.ModelDigest[:], digest)
	}
	out.fill(r, data, response, perceptionv1.QualityKind_QUALITY_KIND_CACHE)
	return nil
}

func (l Ladder) constantDetect(r *perceptionv1.DetectRequest, out *Answer) error {
	if !l.ConstantBoxes {
		return errNone
	}
	data, width, height, err := frame(r)
	if err != nil {
		return err
	}
	o := &perceptionv1.Output{SourceId: r.SourceId, CaptureTimeUs: r.CaptureTimeUs, FrameWidth: width, FrameHeight: height, Model: r.Model}
	for _, b := range l.Boxes {
		if b.Confidence < r.MinConfidence {
			continue
		}
		o.Confidence = max(o.Confidence, b.Confidence)
		o.Boxes = append(o.Boxes, &perceptionv1.Box{
			XMin: b.XMin * float32(width), XMax: b.XMax * float32(width), YMin: b.YMin * float32(height), YMax: b.YMax * float32(height),
			Confidence: b.Confidence, Label: b.Label,
		})
	}
	out.fill(r, data, &perceptionv1.DetectResponse{Output: o}, perceptionv1.QualityKind_QUALITY_KIND_RULE)
	return nil
}

// fill completes a typed answer. A repeated one keeps the capture time of the frame
// that its boxes were found in.
func (a *Answer) fill(r *perceptionv1.DetectRequest, data []byte, response *perceptionv1.DetectResponse, kind perceptionv1.QualityKind) {
	a.InputHash = audit.FrameHash(data, r.CaptureTimeUs, r.SourceId)
	a.OutHash = BoxesHash(response.Output.Boxes)
	response.Output.Quality = &perceptionv1.Quality{Kind: kind, Source: a.Source, AgeMs: a.Age.Milliseconds()}
	a.encode = func(position, traceID string) ([]byte, error) {
		response.Output.TraceId, response.Output.AuditPosition = traceID, nil
		if parts := strings.Split(position, "/"); len(parts) == 3 {
			if sequence, err := strconv.ParseUint(parts[2], 10, 64); err == nil {
				response.Output.AuditPosition = &perceptionv1.AuditPosition{Log: parts[0], Boot: parts[1], Sequence: sequence}
			}
		}
		return proto.Marshal(response)
	}
}

// BoxesHash is the output hash of a typed answer (docs/audit-format.md, "Typed perception").
func BoxesHash(boxes []*perceptionv1.Box) [32]byte {
	var corners, labels, points []byte
	float := func(to []byte, values ...float32) []byte {
		for _, v := range values {
			to = binary.LittleEndian.AppendUint32(to, math.Float32bits(v))
		}
		return to
	}
	count := uint64(0)
	for _, b := range boxes {
		corners = float(corners, b.XMin, b.YMin, b.XMax, b.YMax, b.Confidence)
		labels = append(binary.LittleEndian.AppendUint32(labels, uint32(len(b.Label))), b.Label...)
		for _, p := range b.Quadrilateral {
			points = float(points, p.X, p.Y)
		}
		for _, p := range b.Landmarks {
			points = float(points, p.X, p.Y)
		}
		count += uint64(len(b.Quadrilateral) + len(b.Landmarks))
	}
	n := uint64(len(boxes))
	return audit.TensorHash([]audit.Tensor{
		{Name: "boxes", Datatype: "FP32", Shape: []uint64{n, 5}, Raw: corners},
		{Name: "labels", Datatype: "BYTES", Shape: []uint64{n}, Raw: labels},
		{Name: "points", Datatype: "FP32", Shape: []uint64{count, 2}, Raw: points},
	})
}
