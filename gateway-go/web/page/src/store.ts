import { computed, effect, signal } from "@preact/signals";
import { connectVigil, describe, type Watched } from "@vigil/client";
import type { Model } from "@vigil/client/gen/vigil/models/v1/models_pb.js";
import type { Transition } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

import { type FromSource, HERE_MS, Source, type ToSource } from "./source.js";
import { apply, type Known, nothing, only } from "./state.js";

/** A digest of the page's sources; set when it is built. */
declare const BUILD: string;
/** A page that hears nothing for so long is not fresh, whatever its worker said before. */
const PAGE_SILENT_MS = 2000;
/** A worker that says nothing for so long has ended: figures come each second, and of silence it tells once a second. */
const WORKER_LOST_MS = 10_000;

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

/** When this page heard of its source last, by a clock that only goes on; a worker may end without a word. */
let heardMs = performance.now();
const silent = signal(false);
setInterval(() => (silent.value = performance.now() - heardMs > PAGE_SILENT_MS), 200);

/** How the connection is, as far as this page knows. */
export const connection = computed(() => (silent.value && known.value.connection === "live" ? "stale" : known.value.connection));

/** Whether what is shown is what is. */
export const fresh = computed(() => connection.value === "live");

effect(() => {
  const sources = new Set(watched.value.map((s) => s.sourceId));
  known.value = only(known.peek(), sources);
});

/** Starts following: through the shared worker, or, where there is none, by a stream of this page. */
export function start(): void {
  const hear = (message: FromSource): void => {
    heardMs = performance.now();
    silent.value = false;
    known.value = message.type === "known" ? message.known : apply(known.value, message.news);
  };
  if (typeof SharedWorker === "undefined") {
    const source = new Source(base, (news) => hear({ type: "news", news }));
    effect(() => source.watch(watched.value));
    return;
  }
  let port = connect(hear);
  const say = (said: ToSource): void => port.postMessage(said);
  effect(() => say({ type: "here", sources: watched.value }));
  const here = (): void => say({ type: "here", sources: watched.value });
  setInterval(here, HERE_MS);
  setInterval(() => {
    if (performance.now() - heardMs > WORKER_LOST_MS) { // nothing, not even that the gateway is silent
      heardMs = performance.now() - PAGE_SILENT_MS - 1;
      port.close();
      port = connect(hear);
      here();
    }
  }, 1000);
  addEventListener("pagehide", () => say({ type: "bye" }));
  for (const event of ["pageshow", "resume", "visibilitychange"]) {
    document.addEventListener(event, here);
    addEventListener(event, here);
  }
}

/** A port of the shared worker of this build: that of another one may know other things. */
function connect(hear: (message: FromSource) => void): MessagePort {
  const worker = new SharedWorker(new URL(`worker.js?${BUILD}`, base), { type: "module", name: `vigil ${BUILD}` });
  worker.port.onmessage = (message) => hear(message.data as FromSource);
  worker.onerror = () => {
    known.value = { ...known.value, connection: "refused", why: "the page's worker could not be started", sinceMs: Date.now() };
  };
  return worker.port;
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
let given = 0;
let waiting: ReturnType<typeof setTimeout> | undefined;

/** Asks for the models now. */
export async function loadModels(): Promise<void> {
  const own = ++asked;
  try {
    const reply = await vigil.models.listModels({});
    if (own > given) { // whoever waited for this has it, unless there is a later one
      given = own;
      models.value = { value: reply.models, error: "", loading: false };
    }
  } catch (error) {
    if (own === asked) {
      models.value = { ...models.value, error: describe(error).text, loading: false };
    }
  }
}

/** Changes of states of the gateway's run before this page looked, asked for anew with each start of the stream. */
export const history = signal<Loaded<readonly Transition[]>>({ value: undefined, error: "", loading: true });

async function loadHistory(): Promise<void> {
  try {
    const reply = await vigil.safety.history({ limit: 1000 });
    history.value = { value: reply.transitions, error: "", loading: false };
  } catch (error) {
    history.value = { ...history.value, error: describe(error).text, loading: false };
  }
}

let starts = 0;
effect(() => {
  if (known.value.starts !== starts) {
    starts = known.value.starts;
    void loadHistory();
  }
});

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
