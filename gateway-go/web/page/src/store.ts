import { computed, effect, signal } from "@preact/signals";
import { connectVigil, describe, type Watched } from "@vigil/client";
import type { Model } from "@vigil/client/gen/vigil/models/v1/models_pb.js";

import { type FromSource, HERE_MS, Source, type ToSource } from "./source.js";
import { apply, type Known, nothing, only } from "./state.js";

/** Where the gateway is: the folder of this page, which works under a path prefix too. */
export const base = new URL(".", document.baseURI).href;

/** Calls of the page itself. */
export const vigil = connectVigil({ baseUrl: base, timeoutMs: 70_000 });

/** What the stream told. */
export const known = signal<Known>(nothing(Date.now()));

/** The sources that this page looks at. */
export const watched = signal<readonly Watched[]>([]);

/** Ticks once a second, for ages. */
export const tick = signal(Date.now());
setInterval(() => (tick.value = Date.now()), 1000);

/** The gateway's clock, ms since 1970. */
export function gatewayNow(): number {
  return Date.now() + known.value.clockMs;
}

/** Whether what is shown is what is. */
export const fresh = computed(() => known.value.connection === "live");

effect(() => {
  const sources = new Set(watched.value.map((s) => s.sourceId));
  known.value = only(known.peek(), sources);
});

/** Starts following: through the shared worker, or, where there is none, by a stream of this page. */
export function start(): void {
  const hear = (message: FromSource): void => {
    known.value = message.type === "known" ? message.known : apply(known.value, message.news);
  };
  if (typeof SharedWorker === "undefined") {
    const source = new Source(base, (news) => hear({ type: "news", news }));
    effect(() => source.watch(watched.value));
    return;
  }
  const worker = new SharedWorker(new URL("worker.js", base), { type: "module", name: "vigil" });
  worker.port.onmessage = (message) => hear(message.data as FromSource);
  worker.onerror = () => {
    known.value = { ...known.value, connection: "refused", why: "the page's worker could not be started", sinceMs: Date.now() };
  };
  const say = (said: ToSource): void => worker.port.postMessage(said);
  effect(() => say({ type: "here", sources: watched.value }));
  setInterval(() => say({ type: "here", sources: watched.value }), HERE_MS);
  addEventListener("pagehide", () => say({ type: "bye" }));
  addEventListener("pageshow", () => say({ type: "here", sources: watched.value }));
}

/** A list that a call gives, and how that goes. */
export interface Loaded<T> {
  readonly value: T | undefined;
  readonly error: string;
  readonly loading: boolean;
}

/** Models and their versions, asked for anew whenever something happened to one. */
export const models = signal<Loaded<readonly Model[]>>({ value: undefined, error: "", loading: true });
let asked = 0;
let waiting: ReturnType<typeof setTimeout> | undefined;

/** Asks for the models now. */
export async function loadModels(): Promise<void> {
  const own = ++asked;
  try {
    const reply = await vigil.models.listModels({});
    if (own === asked) {
      models.value = { value: reply.models, error: "", loading: false };
    }
  } catch (error) {
    if (own === asked) {
      models.value = { ...models.value, error: describe(error).text, loading: false };
    }
  }
}

let seen = "";
effect(() => {
  const last = known.value.events.at(-1);
  const key = `${known.value.starts} ${last?.resume ?? ""}`;
  if (known.value.starts > 0 && key !== seen) {
    seen = key;
    clearTimeout(waiting);
    waiting = setTimeout(() => void loadModels(), 100);
  }
});
