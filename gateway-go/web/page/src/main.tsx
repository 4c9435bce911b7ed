import "./language.js";

import { signal } from "@preact/signals";
import { type ComponentChildren, type JSX, render } from "preact";
import { useEffect } from "preact/hooks";

import { Audit } from "./audit.js";
import { fullTime, span, stateName, timeOf, timeZone, usToMs } from "./format.js";
import { Live } from "./live.js";
import { Look } from "./look.js";
import { Models } from "./models.js";
import { Safety } from "./safety.js";
import { connection, fresh, gatewayNow, known, start, tick } from "./store.js";
import { Guarded, StateBadge } from "./ui.js";

const VIEWS = ["live", "look", "models", "safety", "audit"] as const;
type View = (typeof VIEWS)[number];

interface Place {
  view: View;
  about: URLSearchParams;
}

/** A clock that is further off is said to be wrong, ms. */
const CLOCK_OFF_MS = 5000;

function read(): Place {
  const [path, about] = location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS.find((v) => v === path) ?? "live";
  return { view, about: new URLSearchParams(about ?? "") };
}

const place = signal(read());
addEventListener("hashchange", () => {
  const before = place.value.view;
  place.value = read();
  if (place.value.view !== before) {
    scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
  }
});

function go(view: View, about: Record<string, string>): void {
  const text = new URLSearchParams(Object.entries(about).filter(([, v]) => v !== "")).toString();
  location.hash = `#/${view}${text ? `?${text}` : ""}`;
}

const THEME = "vigil.theme";

function theme(): "light" | "dark" {
  const kept = localStorage.getItem(THEME);
  return kept === "light" || kept === "dark" ? kept : matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
}

document.documentElement.dataset["theme"] = theme();

function Connection(): JSX.Element {
  tick.value;
  const { why, sinceMs, heardMs } = known.value;
  const words = {
    connecting: "connecting…",
    live: "live",
    stale: `no news for ${span(Date.now() - heardMs)}`,
    refused: `refused: ${why}`,
  }[connection.value];
  const sign = { connecting: "◔", live: "●", stale: "✕", refused: "✕" }[connection.value];
  return (
    <span class={`connection ${connection.value}`} role="status" data-connection={connection.value} title={`since ${fullTime(sinceMs)}`}>
      <span aria-hidden="true">{sign}</span> {words}
    </span>
  );
}

/** The whole in one glance. What is old never looks like good news. */
function Whole(): JSX.Element {
  tick.value;
  const { state } = known.value;
  if (!fresh.value) {
    return <span class="whole"><span class="badge big unknown" data-state="UNKNOWN"><span class="sign" aria-hidden="true">?</span>{state ? `was ${stateName(state.state).toLowerCase().replace("_", " ")}` : "unknown"}</span></span>;
  }
  const name = stateName(state?.state);
  const worst = (state?.subjects ?? []).filter((s) => s.state === state?.state);
  const since = Math.max(0, ...worst.map((s) => usToMs(s.sinceUs)));
  return (
    <span class="whole">
      <StateBadge name={name} big />
      <span class="dim" title={`since ${fullTime(since)}`}>since {timeOf(since)}, for {span(gatewayNow() - since)}{name !== "NORMAL" && worst[0] ? `: ${worst.map((s) => s.subject).join(", ")}` : ""}</span>
    </span>
  );
}

function Page(): JSX.Element {
  tick.value;
  const { view, about } = place.value;
  const { clockMs, hello, state, why } = known.value;
  useEffect(() => {
    document.title = `${fresh.value ? stateName(state?.state).replace("_", " ").toLowerCase() || "vigil" : "no news"} · Vigil`;
  });
  const views: Record<View, () => ComponentChildren> = {
    live: () => <Live />,
    look: () => <Look source={about.get("source") ?? ""} choose={(source) => go("look", { source })} />,
    models: () => <Models />,
    safety: () => <Safety />,
    audit: () => <Audit position={about.get("position") ?? ""} open={(position) => go("audit", { position })} />,
  };
  return (
    <>
      <header>
        <a class="skip" href="#main" onClick={(e) => { e.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to content</a>
        <h1>Vigil</h1>
        <Guarded what="the state"><Whole /></Guarded>
        <nav aria-label="Views">
          {VIEWS.map((v) => (
            <a key={v} href={`#/${v}`} aria-current={v === view ? "page" : undefined}>{v[0]?.toUpperCase()}{v.slice(1)}</a>
          ))}
        </nav>
        <Connection />
        <span class="clock" title="The gateway's clock"><span class="long">{fullTime(gatewayNow()).slice(0, 11)}</span>{fullTime(gatewayNow()).slice(11)}</span>
        <button
          aria-label="Light or dark"
          onClick={() => {
            const next = document.documentElement.dataset["theme"] === "dark" ? "light" : "dark";
            document.documentElement.dataset["theme"] = next;
            localStorage.setItem(THEME, next);
          }}
        >◐</button>
      </header>
      {connection.value === "refused" ? <p class="banner" role="alert">✕ {why}</p> : null}
      {connection.value === "stale" ? <p class="banner" role="alert">✕ Nothing is heard from the gateway. What is shown is old, from {fullTime(known.value.heardMs + clockMs)}.</p> : null}
      {Math.abs(clockMs) > CLOCK_OFF_MS ? (
        <p class="banner soft" role="status">This device's clock is {span(Math.abs(clockMs))} {clockMs > 0 ? "behind" : "ahead of"} the gateway's. Times here are the gateway's, in {timeZone}.</p>
      ) : null}
      <main id="main" tabIndex={-1}><Guarded key={view} what={`the view ${view}`}>{views[view]()}</Guarded></main>
      <footer>
        Vigil {hello?.serverVersion ?? ""} · contract {hello?.contractDigest.slice(0, 12) ?? "–"} · times in {timeZone}
      </footer>
    </>
  );
}

start();
const root = document.getElementById("page") as HTMLElement;
root.replaceChildren();
render(<Page />, root);
