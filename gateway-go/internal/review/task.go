package review

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	auditv1 "vigil/gateway/gen/vigil/audit/v1"

	"vigil/gateway/audit"
	"vigil/gateway/audit/layout"
)

const (
	taskBytesMax = 1 << 20
	progressGap  = 200 * time.Millisecond
)

// Serve reads one task, answers it and returns; gone is called when the input
// ends before that: whoever asked is not there any more.
func Serve(in io.Reader, out io.Writer, gone func()) error {
	reader, task := bufio.NewReader(in), &auditv1.ReadingTask{}
	if err := (protodelim.UnmarshalOptions{MaxSize: taskBytesMax}).UnmarshalFrom(reader, task); err != nil {
		return fmt.Errorf("task: %w", err)
	}
	go func() {
		_, _ = io.Copy(io.Discard, reader)
		gone()
	}()
	send := func(m proto.Message) error {
		data, err := proto.Marshal(m)
		if err != nil {
			return err
		}
		_, err = protodelim.MarshalTo(out, &auditv1.ReadingReply{Message: data})
		return err
	}
	err := answer(task, send)
	if err == nil {
		return nil
	}
	fault := faultOf(err)
	if fault == nil {
		return err
	}
	_, err = protodelim.MarshalTo(out, &auditv1.ReadingReply{Fault: &auditv1.ReadingFault{Code: uint32(fault.Code), Text: fault.Text, Field: fault.Field}})
	return err
}

func answer(task *auditv1.ReadingTask, send func(proto.Message) error) error {
	var reply proto.Message
	var err error
	switch of := task.Of.(type) {
	case *auditv1.ReadingTask_Search:
		reply, err = search(task, of.Search)
	case *auditv1.ReadingTask_Get:
		reply, err = get(task, of.Get.Position)
	case *auditv1.ReadingTask_Prove:
		reply, err = prove(task, of.Prove.Position)
	case *auditv1.ReadingTask_VerifyRange:
		reply, err = verify(task, of.VerifyRange, send)
	default:
		return errors.New("a task that asks for nothing")
	}
	if err != nil {
		return err
	}
	return send(reply)
}

// faultOf is what a caller gets for an error; nil when it is a fault of ours.
func faultOf(err error) *Fault {
	var fault *Fault
	var damage *audit.Damage
	switch {
	case errors.As(err, &fault):
		return fault
	case errors.As(err, &damage): // its words name the file below the log's folder, no path
		return &Fault{Code: codes.DataLoss, Text: "the log is damaged at " + strings.ToValidUTF8(damage.Error(), "\uFFFD") + "; `auditverify` says more"}
	case errors.Is(err, audit.ErrNoLog):
		return &Fault{Code: codes.NotFound, Text: "there is no such log; nothing was recorded yet, or audit.enabled is off"}
	case errors.Is(err, audit.ErrPart):
		return &Fault{Code: codes.OutOfRange, Text: err.Error()}
	case errors.Is(err, audit.ErrNotProven):
		return &Fault{Code: codes.FailedPrecondition, Text: err.Error()}
	}
	return nil
}

// position takes LOG/BOOT/SEQ or LOG/SEQ apart; boot is empty in the latter.
func position(text string) (log, boot string, sequence uint64, err error) {
	parts := strings.Split(text, "/")
	fault := &Fault{Code: codes.InvalidArgument, Field: "position", Text: fmt.Sprintf("position %q: give LOG/BOOT/SEQ as in vigil-audit-position, or LOG/SEQ", text)}
	if len(parts) != 2 && len(parts) != 3 {
		return "", "", 0, fault
	}
	if last := parts[len(parts)-1]; last == "unlogged" || last == "aggregated" {
		return "", "", 0, &Fault{Code: codes.NotFound, Text: fmt.Sprintf("position %q has no record of its own: it is part of a count (events unlogged, refusals_aggregated)", text)}
	}
	last := parts[len(parts)-1]
	if sequence, err = strconv.ParseUint(last, 10, 63); err != nil || sequence == 0 || strconv.FormatUint(sequence, 10) != last {
		return "", "", 0, fault
	}
	if len(parts) == 3 {
		if boot = parts[1]; boot == "" {
			return "", "", 0, fault
		}
	}
	return parts[0], boot, sequence, nil
}

func get(task *auditv1.ReadingTask, at string) (*auditv1.GetResponse, error) {
	_, boot, sequence, err := position(at)
	if err != nil {
		return nil, err
	}
	var found *auditv1.GetResponse
	_, err = audit.Select(task.Folder, &audit.Query{After: sequence - 1, Before: sequence + 1}, func(r *audit.Record) bool {
		if boot == "" || boot == bootOf(r) {
			found = &auditv1.GetResponse{Record: words(r, task.Log), Raw: slices.Concat(r.Header, r.Payload), LeafHash: slices.Clone(r.Leaf[:])}
		}
		return false
	})
	if err == nil && found == nil {
		err = &Fault{Code: codes.NotFound, Text: fmt.Sprintf("record %q is not in the log; it may have been pruned, see its archive", at)}
	}
	return found, err
}

func prove(task *auditv1.ReadingTask, at string) (*auditv1.ProveResponse, error) {
	_, boot, sequence, err := position(at)
	if err != nil {
		return nil, err
	}
	proof, err := audit.MakeProof(task.Folder, sequence)
	if err != nil {
		return nil, err
	}
	if boot != "" {
		proven, err := audit.OpenProof(proof)
		if err != nil {
			return nil, err
		}
		if fmt.Sprintf("%x", proven.Record[layout.OffBootID:layout.OffBootID+16]) != boot {
			return nil, &Fault{Code: codes.NotFound, Text: fmt.Sprintf("record %q is not in the log: %d is of another run", at, sequence)}
		}
	}
	return &auditv1.ProveResponse{Proof: proof}, nil
}

func verify(task *auditv1.ReadingTask, request *auditv1.VerifyRangeRequest, send func(proto.Message) error) (*auditv1.VerifyRangeResponse, error) {
	if request.ToSequence > 0 && request.FromSequence > request.ToSequence {
		text := fmt.Sprintf("from_sequence %d is behind to_sequence %d", request.FromSequence, request.ToSequence)
		return nil, &Fault{Code: codes.InvalidArgument, Field: "from_sequence", Text: text}
	}
	var keys []audit.Key
	for i, line := range request.TrustedKeys {
		key, err := audit.ParseKeys([]byte(line))
		if err != nil || len(key) != 1 {
			return nil, &Fault{Code: codes.InvalidArgument, Field: fmt.Sprintf("trusted_keys[%d]", i), Text: "not a note verifier key (name+id+key)"}
		}
		keys = append(keys, key...)
	}
	told, rest := time.Now(), breath{}
	report, err := audit.VerifyPart(task.Folder, request.FromSequence, request.ToSequence, keys, func(records, bytes, total uint64) {
		rest.take()
		if time.Since(told) < progressGap {
			return
		}
		told = time.Now()
		_ = send(&auditv1.VerifyRangeResponse{Of: &auditv1.VerifyRangeResponse_Progress{ // who does not listen is noticed by gone
			Progress: &auditv1.VerifyProgress{Records: records, Bytes: bytes, BytesTotal: total},
		}})
	})
	if err != nil {
		return nil, err
	}
	if request.FromSequence > report.LastSequence && report.Damage == nil {
		text := fmt.Sprintf("from_sequence %d: the log ends at %d", request.FromSequence, report.LastSequence)
		return nil, &Fault{Code: codes.OutOfRange, Field: "from_sequence", Text: text}
	}
	verdict := &auditv1.VerifyVerdict{
		ExitCode: uint32(report.ExitCode), Verdict: report.Verdict, Origin: report.Log, FirstSequence: report.FirstSequence, LastSequence: report.LastSequence,
		SealedSequence: report.Sealed, Checkpoints: report.Checkpoints, Unlogged: report.Unlogged,
	}
	if d := report.Damage; d != nil {
		verdict.Reason = strings.ToValidUTF8(d.Reason, "\uFFFD") // words of the log itself may be in it
		verdict.DamagedSequence, verdict.DamagedFile, verdict.DamagedOffset = d.Sequence, d.File, uint64(d.Offset)
	}
	return &auditv1.VerifyRangeResponse{Of: &auditv1.VerifyRangeResponse_Verdict{Verdict: verdict}}, nil
}
