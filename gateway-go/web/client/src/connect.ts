import { create } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient, type Interceptor } from "@connectrpc/connect";
import { createGrpcWebTransport } from "@connectrpc/connect-web";

import { AuditService } from "./gen/vigil/audit/v1/service_pb.js";
import { LiveService } from "./gen/vigil/live/v1/live_pb.js";
import { ModelsService } from "./gen/vigil/models/v1/models_pb.js";
import { PerceptionService } from "./gen/vigil/perception/v1/perception_pb.js";
import { SafetyService } from "./gen/vigil/safety/v1/safety_pb.js";

export { create };

const LIVE_PATH = `/${LiveService.typeName}/${LiveService.method.watch.name}`;

/** Clients of one gateway. All methods may be called at the same time. */
export interface Vigil {
  readonly baseUrl: string;
  readonly audit: Client<typeof AuditService>;
  readonly live: Client<typeof LiveService>;
  readonly models: Client<typeof ModelsService>;
  readonly perception: Client<typeof PerceptionService>;
  readonly safety: Client<typeof SafetyService>;
  /** Called whenever bytes of a live stream arrive, before their message is whole. */
  readonly onLiveBytes: Set<() => void>;
}

/** How to connect. */
export interface ConnectOptions {
  /** Where the gateway's web listener is, with a path prefix where there is one. */
  baseUrl: string;
  /** Who calls, for fairness and the audit log; a claim, no proof. */
  tenant?: string;
  /** Time for one call, ms; 0 for none. Streams have none. */
  timeoutMs?: number;
  fetch?: typeof globalThis.fetch;
}

/** A new W3C trace context: its header and the trace id, 32 hex digits. */
export function newTrace(): { traceparent: string; traceId: string } {
  const bytes = crypto.getRandomValues(new Uint8Array(24));
  const hex = Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");
  const traceId = hex.slice(0, 32);
  return { traceparent: `00-${traceId}-${hex.slice(32)}-01`, traceId };
}

/** Connects to a gateway over gRPC-Web; nothing is sent before the first call. Each call has a trace of its own. */
export function connectVigil(options: ConnectOptions): Vigil {
  const beside: Interceptor = (next) => async (request) => {
    if (!request.header.has("traceparent")) {
      request.header.set("traceparent", newTrace().traceparent);
    }
    if (options.tenant) {
      request.header.set("vigil-tenant", options.tenant);
    }
    return next(request);
  };
  const onLiveBytes = new Set<() => void>();
  const ask = options.fetch ?? globalThis.fetch;
  const counting: typeof globalThis.fetch = async (input, init) => {
    const answer = await ask(input, init);
    if (!String(input instanceof Request ? input.url : input).endsWith(LIVE_PATH) || !answer.ok || !answer.body) {
      return answer;
    }
    const told = new TransformStream<Uint8Array, Uint8Array>({
      transform(chunk, controller): void {
        onLiveBytes.forEach((f) => f());
        controller.enqueue(chunk);
      },
    });
    return new Response(answer.body.pipeThrough(told), { status: answer.status, headers: answer.headers });
  };
  const transport = createGrpcWebTransport({
    baseUrl: options.baseUrl.replace(/\/+$/, ""),
    interceptors: [beside],
    ...(options.timeoutMs ? { defaultTimeoutMs: options.timeoutMs } : {}),
    fetch: counting,
  });
  return {
    baseUrl: options.baseUrl,
    audit: createClient(AuditService, transport),
    live: createClient(LiveService, transport),
    models: createClient(ModelsService, transport),
    perception: createClient(PerceptionService, transport),
    safety: createClient(SafetyService, transport),
    onLiveBytes,
  };
}

/** An error in words, with its code and, where the gateway told one, the trace id to search the log for. */
export function describe(error: unknown): { code: string; text: string; traceId: string } {
  const e = ConnectError.from(error);
  return { code: Code[e.code] ?? "Unknown", text: e.rawMessage, traceId: e.metadata.get("vigil-trace-id") ?? "" };
}
