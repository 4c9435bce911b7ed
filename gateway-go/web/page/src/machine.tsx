import { type JSX } from "preact";

import { ARROWS, STATES } from "@vigil/client/gen/tables.js";

import { faceOf } from "./format.js";

const PLACES: Record<string, [number, number]> = {
  STARTING: [90, 50],
  NORMAL: [330, 50],
  RECOVERING: [560, 130],
  DEGRADED: [330, 210],
  SAFE_STOP: [90, 210],
};
const HALF_WIDTH = 72;
const HALF_HEIGHT = 24;

/** Where a line from a box's middle towards another leaves the box, a little aside when there is one back. */
function edge([x, y]: [number, number], dx: number, dy: number, aside: number): [number, number] {
  const length = Math.hypot(dx, dy);
  const [ux, uy] = [dx / length, dy / length];
  const reach = Math.min(HALF_WIDTH / Math.max(Math.abs(ux), 1e-9), HALF_HEIGHT / Math.max(Math.abs(uy), 1e-9)) + 3;
  return [x + ux * reach - uy * aside, y + uy * reach + ux * aside];
}

/** The safety machine with the states that are active now, and the change that came last. */
export function Machine({ active, last }: { active: ReadonlyMap<string, readonly string[]>; last: readonly [string, string] | undefined }): JSX.Element {
  const arrows = new Map<string, [string, string, string[]]>();
  for (const [from, to, event] of ARROWS) {
    const key = `${from} ${to}`;
    const entry = arrows.get(key) ?? [from, to, []];
    entry[2].push(event);
    arrows.set(key, entry);
  }
  const words = [...active].map(([state, subjects]) => `${faceOf(state).word}: ${subjects.join(", ")}`).join("; ");
  return (
    <svg class="machine" viewBox="0 0 650 260" role="img" aria-label={`Safety machine. ${words}`}>
      <defs>
        <marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse">
          <path d="M0 0 L8 4 L0 8 z" class="tip" />
        </marker>
      </defs>
      {[...arrows.values()].map(([from, to, events]) => {
        const [a, b] = [PLACES[from], PLACES[to]];
        if (!a || !b) {
          return null;
        }
        const aside = arrows.has(`${to} ${from}`) ? 7 : 0;
        const [x1, y1] = edge(a, b[0] - a[0], b[1] - a[1], aside);
        const [x2, y2] = edge(b, a[0] - b[0], a[1] - b[1], -aside);
        const hot = last?.[0] === from && last[1] === to;
        return (
          <line key={`${from} ${to}`} x1={x1} y1={y1} x2={x2} y2={y2} class={hot ? "arrow hot" : "arrow"} marker-end="url(#tip)">
            <title>{`${faceOf(from).word} → ${faceOf(to).word}: ${events.join(", ")}`}</title>
          </line>
        );
      })}
      {Object.entries(PLACES).map(([name, [x, y]]) => {
        const here = active.get(name) ?? [];
        const face = faceOf(name);
        return (
          <g key={name} class={`state ${face.look}${here.length ? " on" : ""}`} data-state={name}>
            <title>{`${face.word}: ${STATES[name]?.doc ?? ""}${here.length ? ` Now: ${here.join(", ")}` : ""}`}</title>
            <rect x={x - HALF_WIDTH} y={y - HALF_HEIGHT} width={2 * HALF_WIDTH} height={2 * HALF_HEIGHT} rx="8" />
            <text x={x} y={here.length ? y - 1 : y + 5}>{`${face.sign} ${face.word}`}</text>
            {here.length ? (
              <text x={x} y={y + 15} class="who">{here.length === 1 ? clip(here[0] as string) : `${here.length} subjects`}</text>
            ) : null}
          </g>
        );
      })}
    </svg>
  );
}

function clip(text: string): string {
  return text.length > 20 ? `${text.slice(0, 19)}…` : text;
}
