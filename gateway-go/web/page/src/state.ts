import type { Connection } from "@vigil/client";
import type { Event, Figures, Hello, SourceOutput } from "@vigil/client/gen/vigil/live/v1/live_pb.js";
import type { SystemState } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

/** How many of each are kept: a page that stays open for weeks must not grow. */
export const EVENTS_MAX = 1000;
export const FIGURES_MAX = 300;

/** What came over the stream; news is either of these. */
export type News =
  | { kind: "connection"; connection: Connection; why: string; atMs: number }
  | { kind: "hello"; hello: Hello; atMs: number }
  | { kind: "event"; event: Event }
  | { kind: "figures"; figures: Figures; atMs: number }
  | { kind: "output"; output: SourceOutput; atMs: number }
  /** The worker is there, and when the gateway was heard last. */
  | { kind: "alive"; heardMs: number }
  | { kind: "gap"; why: string };

/** All that is known of a gateway. It is changed by `apply` only. */
export interface Known {
  connection: Connection;
  why: string;
  /** When the connection became what it is, and when anything was heard last; this device's clock, ms. */
  sinceMs: number;
  heardMs: number;
  hello: Hello | undefined;
  /** Gateway's clock minus this device's, ms. */
  clockMs: number;
  state: SystemState | undefined;
  events: readonly Event[];
  figures: readonly Figures[];
  outputs: ReadonlyMap<string, SourceOutput>;
  limits: ReadonlyMap<string, number>;
  /** Why events before now may be missing; empty when none is. */
  gap: string;
  /** Rises with each start of a stream. */
  starts: number;
}

/** What is known at first: nothing. */
export function nothing(nowMs: number): Known {
  return {
    connection: "connecting", why: "", sinceMs: nowMs, heardMs: nowMs, hello: undefined, clockMs: 0, state: undefined,
    events: [], figures: [], outputs: new Map(), limits: new Map(), gap: "", starts: 0,
  };
}

/** The same without outputs of sources that nobody looks at any more: each may have a large picture. */
export function only(known: Known, sources: ReadonlySet<string>): Known {
  const kept = [...known.outputs].filter(([source]) => sources.has(source));
  return kept.length === known.outputs.size ? known : { ...known, outputs: new Map(kept) };
}

/** What is known after the news. */
export function apply(known: Known, news: News): Known {
  switch (news.kind) {
    case "connection":
      return { ...known, connection: news.connection, why: news.why, sinceMs: news.atMs };
    case "hello":
      return {
        ...known, hello: news.hello, state: news.hello.state, heardMs: news.atMs, clockMs: Number(news.hello.timeUs / 1000n) - news.atMs,
        starts: known.starts + 1,
      };
    case "event": {
      if (known.events.some((e) => e.resume === news.event.resume)) {
        return known;
      }
      return { ...known, events: [...known.events.slice(1 - EVENTS_MAX), news.event], state: news.event.state ?? known.state };
    }
    case "figures": {
      const limits = news.figures.limits.length ? new Map(known.limits) : known.limits;
      for (const hit of news.figures.limits) {
        (limits as Map<string, number>).set(hit.limit, (limits.get(hit.limit) ?? 0) + Number(hit.count));
      }
      return { ...known, figures: [...known.figures.slice(1 - FIGURES_MAX), news.figures], limits, heardMs: news.atMs, state: news.figures.state ?? known.state, clockMs: Number(news.figures.timeUs / 1000n) - news.atMs };
    }
    case "output": {
      const outputs = new Map(known.outputs);
      outputs.set(news.output.sourceId, news.output);
      return { ...known, outputs, heardMs: news.atMs };
    }
    case "alive":
      return known.heardMs === news.heardMs ? known : { ...known, heardMs: news.heardMs };
    case "gap":
      return { ...known, gap: news.why };
  }
}
