import { Component, type ComponentChildren, type JSX, type TargetedSubmitEvent } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { describe } from "@vigil/client";

import { bounded, faceOf, fullTime, short, span, timeWithDate } from "./format.js";
import { fresh, gatewayNow, tick } from "./store.js";

/** A state in a glance: sign, word and colour. */
export function StateBadge({ name, big }: { name: string; big?: boolean }): JSX.Element {
  const face = faceOf(name);
  return (
    <span class={`badge ${face.look}${big ? " big" : ""}`} data-state={name}>
      <span class="sign" aria-hidden="true">{face.sign}</span>
      {face.word}
    </span>
  );
}

/** A state of now: what is not heard of any more only was so. */
export function NowBadge({ name }: { name: string }): JSX.Element {
  return fresh.value ? <StateBadge name={name} /> : <span class="badge unknown" data-state="UNKNOWN">? was {faceOf(name).word}</span>;
}

/** A moment: time of day, with the whole in its title, and how long ago where asked. */
export function When({ ms, ago }: { ms: number; ago?: boolean }): JSX.Element {
  tick.value;
  if (ms <= 0) {
    return <span>–</span>;
  }
  if (bounded(ms) !== ms) {
    return <span>not a time</span>;
  }
  return (
    <time dateTime={new Date(ms).toISOString()} title={fullTime(ms)}>
      {timeWithDate(ms, gatewayNow())}
      {ago ? <span class="dim"> ({span(gatewayNow() - ms)})</span> : null}
    </time>
  );
}

/** The beginning of a digest; all of it in the title. */
export function Digest({ hex }: { hex: string }): JSX.Element {
  return <code title={hex}>{short(hex)}</code>;
}

/** Shows an error of this page in words, in place of what could not be drawn. */
export class Guarded extends Component<{ what: string; children: ComponentChildren }, { error: string }> {
  override state = { error: "" };

  static override getDerivedStateFromError(error: unknown): { error: string } {
    return { error: String(error) };
  }

  override render(): ComponentChildren {
    return this.state.error ? (
      <p class="stopped" role="alert" data-broken>
        ✕ This page cannot show {this.props.what}: {this.state.error}. What it showed before may be old: reload it, and look at the other views.
      </p>
    ) : this.props.children;
  }
}

/** A part of a view with a heading. */
export function Card({ title, children, wide, id }: { title: string; children: ComponentChildren; wide?: boolean; id?: string }): JSX.Element {
  return (
    <section class={`card${wide ? " wide" : ""}`} aria-label={title} id={id}>
      <h2>{title}</h2>
      {children}
    </section>
  );
}

/** What stands where nothing is. */
export function Empty({ children }: { children: ComponentChildren }): JSX.Element {
  return <p class="empty">{children}</p>;
}

/** An error in words. */
export function Problem({ text }: { text: string }): JSX.Element | null {
  return text ? (
    <p class="problem" role="alert">
      <span class="sign" aria-hidden="true">✕ </span>
      {text}
    </p>
  ) : null;
}

/** A table that scrolls by itself where it is too wide. */
export function Table({ head, children, label }: { head: readonly string[]; children: ComponentChildren; label: string }): JSX.Element {
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label={label}>
      <table>
        <thead>
          <tr>{head.map((h) => <th scope="col" key={h}>{h}</th>)}</tr>
        </thead>
        <tbody>{children}</tbody>
      </table>
    </div>
  );
}

/** A field of a question. */
export interface Field {
  name: string;
  label: string;
  required?: boolean;
  max?: number;
  hint?: string;
}

/** Asks before something is done: what it is, and the fields that are needed for it. */
export function Ask(props: {
  title: string;
  text: string;
  verb: string;
  danger?: boolean;
  fields: readonly Field[];
  act: (values: Record<string, string>) => Promise<void>;
  close: () => void;
}): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null);
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState("");
  useEffect(() => dialog.current?.showModal(), []);
  const submit = async (event: TargetedSubmitEvent<HTMLFormElement>): Promise<void> => {
    event.preventDefault();
    const data = new FormData(event.currentTarget);
    const values = Object.fromEntries(props.fields.map((f) => [f.name, String(data.get(f.name) ?? "").trim()]));
    const missing = props.fields.find((f) => f.required && !values[f.name]);
    if (missing) {
      setError(`${missing.label} is needed`);
      return;
    }
    setBusy(true);
    setError("");
    try {
      await props.act(values);
      props.close();
    } catch (failed) {
      const { text, traceId } = describe(failed);
      setError(traceId ? `${text} (trace ${traceId})` : text);
      setBusy(false);
    }
  };
  return (
    <dialog ref={dialog} onClose={props.close} aria-label={props.title}>
      <form onSubmit={(e) => void submit(e)}>
        <h2>{props.title}</h2>
        <p>{props.text}</p>
        {props.fields.map((f) => (
          <label key={f.name}>
            {f.label}
            {f.required ? " (required)" : ""}
            <input name={f.name} maxLength={f.max ?? 256} required={f.required ?? false} autocomplete="off" />
            {f.hint ? <span class="dim">{f.hint}</span> : null}
          </label>
        ))}
        <Problem text={error} />
        <p class="buttons">
          <button type="button" onClick={props.close}>Cancel</button>
          <button type="submit" class={props.danger ? "danger" : "primary"} disabled={busy}>{busy ? "Working…" : props.verb}</button>
        </p>
      </form>
    </dialog>
  );
}
