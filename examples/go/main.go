// One inference with its proof: the answer, the digest of the model that gave it, and
// its place in the audit log.
//
//	go run . 127.0.0.1:8001 scale
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"vigil/gateway/gen/inference"
)

func main() {
	if len(os.Args) != 3 {
		log.Fatal("usage: go run . HOST:PORT MODEL")
	}
	conn, err := grpc.NewClient(os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	var raw []byte
	for range 4 {
		raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(1))
	}
	request := &inference.ModelInferRequest{
		ModelName: os.Args[2], RawInputContents: [][]byte{raw},
		Inputs: []*inference.ModelInferRequest_InferInputTensor{{Name: "x", Datatype: "FP32", Shape: []int64{1, 4}}},
	}
	var trailers metadata.MD
	answer := &inference.ModelInferResponse{}
	if err := conn.Invoke(ctx, "/inference.GRPCInferenceService/ModelInfer", request, answer, grpc.Trailer(&trailers)); err != nil {
		log.Fatal(err)
	}
	for i, output := range answer.Outputs {
		fmt.Print(output.Name, " ", output.Shape)
		for data := answer.RawOutputContents[i]; len(data) >= 4; data = data[4:] {
			fmt.Print(" ", math.Float32frombits(binary.LittleEndian.Uint32(data)))
		}
		fmt.Println()
	}
	fmt.Println("version", answer.ModelVersion, "digest", answer.Parameters["vigil_model_digest"].GetStringParam())
	fmt.Println("record", trailers.Get("vigil-audit-position"), "state", trailers.Get("vigil-safety-state"))
}
