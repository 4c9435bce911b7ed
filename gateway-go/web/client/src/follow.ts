import { Code, ConnectError } from "@connectrpc/connect";

import { describe, type Vigil } from "./connect.js";
import type { Event, Figures, Hello, SourceOutput } from "./gen/vigil/live/v1/live_pb.js";
import { CONTRACT_DIGEST } from "./gen/tables.js";

/** How the stream is. */
export type Connection =
  /** Nothing was heard yet. */
  | "connecting"
  /** Something was heard within the last two seconds. */
  | "live"
  /** Nothing was heard for two seconds: what is shown is old. */
  | "stale"
  /** The gateway refuses, and says why. */
  | "refused";

/** What a follower hears. Events come once and in order, also over cuts. */
export interface Heard {
  hello?(hello: Hello): void;
  event?(event: Event): void;
  figures?(figures: Figures): void;
  output?(output: SourceOutput): void;
  /** The connection changed; `why` is in words. */
  connection?(connection: Connection, why: string): void;
  /** The gateway is another one, or was away for too long: events before now may be missing. */
  gap?(why: string): void;
}

/** A source to follow. */
export interface Watched {
  sourceId: string;
  frames: boolean;
}

/** A stream that is kept up until `close`. */
export interface Following {
  /** Asks for other sources; no event is lost or doubled by it. */
  watch(sources: readonly Watched[]): void;
  /** Where a later follower can go on. */
  readonly resume: string;
  close(): void;
}

/** Figures come each second, so that silence means something: with its watchdog this is two seconds at most. */
export const STALE_MS = 1750;
/** A stream that brings nothing for so long, not a byte, is given up, and opened anew. */
export const SILENT_MS = 6000;
const WATCH_MS = 100;
const WAIT_FIRST_MS = 200;
const WAIT_LAST_MS = 3000;
/** A source that was refused is asked for again after this. */
const AGAIN_MS = 5000;

/** Whether a gateway speaks another contract than this code was made for; in words, empty when not. */
export function contractDifference(hello: Hello): string {
  return hello.contractDigest === CONTRACT_DIGEST
    ? ""
    : `This page was made for the contract ${CONTRACT_DIGEST.slice(0, 12)}; the gateway (version ${hello.serverVersion}) speaks ${hello.contractDigest.slice(0, 12)}. Reload the page.`;
}

/** Time that only goes on: a device's clock may be set while a page is open. */
const now = (): number => performance.now();

/** Follows a gateway's LiveService: reopens the stream when it ends or is silent, and goes on after the last event. */
export function follow(vigil: Vigil, heard: Heard, options: { sources?: readonly Watched[]; resume?: string } = {}): Following {
  let sources = options.sources ?? [];
  let resume = options.resume ?? "";
  let closed = false;
  let generation = 0;
  let abort = new AbortController();
  /** When anything was heard last, and when the present attempt began or brought something. */
  let heardMs = now();
  let movedMs = now();
  let state: Connection = "connecting";
  let wait = WAIT_FIRST_MS;
  let wake: () => void = () => undefined;
  let again: ReturnType<typeof setTimeout> | undefined;

  const turn = (next: Connection, why: string): void => {
    if (state !== next) {
      state = next;
      heard.connection?.(next, why);
    }
  };
  /** Bytes of a large picture are a sign of life too, long before it is whole. */
  const moved = (): void => {
    heardMs = movedMs = now();
    turn("live", "");
  };
  vigil.onLiveBytes.add(moved);

  const reopen = (): void => {
    generation++;
    abort.abort();
    wake();
  };

  const once = async (own: number): Promise<void> => {
    abort = new AbortController();
    movedMs = now();
    const request = { resume, sources: sources.map((s) => ({ sourceId: s.sourceId, frames: s.frames })) };
    for await (const message of vigil.live.watch(request, { signal: abort.signal, timeoutMs: 0 })) {
      if (closed || own !== generation) {
        return;
      }
      moved();
      wait = WAIT_FIRST_MS;
      switch (message.of.case) {
        case "hello":
          resume ||= message.of.value.resume;
          heard.hello?.(message.of.value);
          break;
        case "event":
          resume = message.of.value.resume;
          heard.event?.(message.of.value);
          break;
        case "figures":
          heard.figures?.(message.of.value);
          break;
        case "output":
          heard.output?.(message.of.value);
          if (message.of.value.ended) {
            clearTimeout(again);
            again = setTimeout(reopen, AGAIN_MS);
          }
          break;
        default:
          break; // of a newer gateway
      }
    }
  };

  const run = async (): Promise<void> => {
    while (!closed) {
      const own = generation;
      try {
        await once(own);
      } catch (error) {
        if (!closed && own === generation) {
          failed(error);
        }
      }
      if (!closed && own === generation) {
        await new Promise<void>((done) => {
          wake = done;
          setTimeout(done, wait);
        });
        wait = Math.min(wait * 2, WAIT_LAST_MS);
      }
    }
  };

  const failed = (error: unknown): void => {
    const { code, text } = describe(error);
    switch (ConnectError.from(error).code) {
      case Code.OutOfRange:
        resume = "";
        heard.gap?.(text);
        return;
      case Code.PermissionDenied:
      case Code.InvalidArgument:
      case Code.Unimplemented:
      case Code.ResourceExhausted:
        turn("refused", `${code}: ${text}`);
        wait = WAIT_LAST_MS;
        return;
      default:
        return; // it is stale when it stays so
    }
  };

  const watchdog = setInterval(() => {
    if (now() - heardMs > STALE_MS && state !== "refused") {
      turn("stale", "nothing was heard from the gateway for two seconds");
    }
    if (now() - movedMs > SILENT_MS) {
      movedMs = now();
      abort.abort();
    }
  }, WATCH_MS);

  void run();
  return {
    watch(next): void {
      const same = next.length === sources.length && next.every((s, i) => s.sourceId === sources[i]?.sourceId && s.frames === sources[i]?.frames);
      if (!same) {
        sources = [...next];
        reopen();
      }
    },
    get resume(): string {
      return resume;
    },
    close(): void {
      closed = true;
      clearInterval(watchdog);
      clearTimeout(again);
      vigil.onLiveBytes.delete(moved);
      abort.abort();
      wake();
    },
  };
}
