package edge

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

// healthPoll is how often a watched state is looked at.
const healthPoll = 100 * time.Millisecond

var errOneHealth = connect.NewError(connect.CodeNotFound, errors.New("unknown service; ask for the empty name"))

func (w *web) healthStatus() healthpb.HealthCheckResponse_ServingStatus {
	if w.service.Ready() {
		return healthpb.HealthCheckResponse_SERVING
	}
	return healthpb.HealthCheckResponse_NOT_SERVING
}

func (w *web) health(_ context.Context, req *connect.Request[healthpb.HealthCheckRequest]) (*connect.Response[healthpb.HealthCheckResponse], error) {
	if req.Msg.Service != "" {
		return nil, errOneHealth
	}
	// SR-055
	if why := w.service.PartsStopped(); why != "" { // whoever supervises this process is to replace it
		return nil, connect.NewError(connect.CodeUnavailable, errors.New(why))
	}
	return connect.NewResponse(&healthpb.HealthCheckResponse{Status: w.healthStatus()}), nil
}

// watchHealth sends the present state, then each change, until the caller goes.
func (w *web) watchHealth(
	ctx context.Context, req *connect.Request[healthpb.HealthCheckRequest], stream *connect.ServerStream[healthpb.HealthCheckResponse],
) error {
	if req.Msg.Service != "" {
		return errOneHealth
	}
	tick := time.NewTicker(healthPoll)
	defer tick.Stop()
	for last := healthpb.HealthCheckResponse_UNKNOWN; ; {
		if now := w.healthStatus(); now != last {
			if err := stream.Send(&healthpb.HealthCheckResponse{Status: now}); err != nil {
				return err
			}
			last = now
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}
