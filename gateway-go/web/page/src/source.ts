import { connectVigil, contractDifference, follow, type Following, type Watched } from "@vigil/client";

import { apply, type Known, type News, nothing, only } from "./state.js";

/** Follows the gateway and tells each piece of news. Runs in the shared worker, or in the page where there is none. */
export class Source {
  known: Known = nothing(Date.now());
  private readonly following: Following;

  constructor(baseUrl: string, tell: (news: News) => void) {
    const news = (n: News): void => {
      this.known = apply(this.known, n);
      tell(n);
    };
    this.following = follow(connectVigil({ baseUrl }), {
      hello: (hello) => {
        news({ kind: "hello", hello, atMs: Date.now() });
        const difference = contractDifference(hello);
        if (difference) {
          news({ kind: "connection", connection: "refused", why: difference, atMs: Date.now() });
        }
      },
      event: (event) => news({ kind: "event", event }),
      figures: (figures) => news({ kind: "figures", figures, atMs: Date.now() }),
      output: (output) => news({ kind: "output", output, atMs: Date.now() }),
      connection: (connection, why) => news({ kind: "connection", connection, why, atMs: Date.now() }),
      gap: (why) => news({ kind: "gap", why }),
    });
  }

  watch(sources: readonly Watched[]): void {
    this.known = only(this.known, new Set(sources.map((s) => s.sourceId)));
    this.following.watch(sources);
  }
}

/** What a page and its source say to each other. */
export type ToSource = { type: "here"; sources: readonly Watched[] } | { type: "bye" };
export type FromSource = { type: "known"; known: Known } | { type: "news"; news: News };

/** One source for many pages. */
export class Shared {
  private readonly pages = new Map<MessagePortLike, { sources: readonly Watched[]; heardMs: number }>();
  private readonly source: Source;

  constructor(baseUrl: string) {
    this.source = new Source(baseUrl, (news) => this.tell(news));
    setInterval(() => this.pages.forEach((_, port) => port.postMessage({ type: "news", news: { kind: "alive", heardMs: this.source.known.heardMs } })), 1000);
    setInterval(() => this.forget(Date.now() - FORGET_MS), FORGET_MS / 3);
  }

  join(port: MessagePortLike): void {
    port.onmessage = (message) => this.hear(port, message.data as ToSource);
  }

  private hear(port: MessagePortLike, said: ToSource): void {
    if (said.type === "bye") {
      this.pages.delete(port);
    } else {
      const fresh = !this.pages.has(port);
      this.pages.set(port, { sources: said.sources, heardMs: Date.now() });
      if (fresh) {
        port.postMessage({ type: "known", known: this.source.known } satisfies FromSource);
      }
    }
    this.watch();
  }

  /** Pages that were closed without a word. */
  private forget(beforeMs: number): void {
    for (const [port, page] of this.pages) {
      if (page.heardMs < beforeMs) {
        this.pages.delete(port);
      }
    }
    this.watch();
  }

  private watch(): void {
    const wanted = new Map<string, Watched>();
    for (const page of this.pages.values()) {
      for (const s of page.sources) {
        wanted.set(s.sourceId, { sourceId: s.sourceId, frames: s.frames || wanted.get(s.sourceId)?.frames === true });
      }
    }
    this.source.watch([...wanted.values()].sort((a, b) => (a.sourceId < b.sourceId ? -1 : 1)).slice(0, 16));
  }

  /** News for all pages; outputs, which may have large pictures, for those that look at their source. */
  private tell(news: News): void {
    for (const [port, page] of this.pages) {
      if (news.kind !== "output" || page.sources.some((s) => s.sourceId === news.output.sourceId)) {
        port.postMessage({ type: "news", news } satisfies FromSource);
      }
    }
  }
}

/** Browsers slow the clocks of hidden pages down to one tick a minute. */
export const FORGET_MS = 180_000;
export const HERE_MS = 15_000;

interface MessagePortLike {
  onmessage: ((message: MessageEvent) => void) | null;
  postMessage(message: FromSource): void;
}
