import { type JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";

import { timeOf } from "./format.js";

/** One line of a chart. */
export interface Line {
  label: string;
  /** Name of a CSS variable. */
  colour: string;
  values: readonly (number | null)[];
  dash?: number[];
}

/** Moments to mark, with a word each. */
export interface Mark {
  ms: number;
  label: string;
}

function css(name: string): string {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

const HEIGHT = 150;
/** The time axis is at least so long, s. */
const SPAN_MIN_S = 60;

/** Moving lines over time. Colours follow the page's theme; a table of the last values is read to who cannot see it. */
export function Chart(props: {
  title: string;
  unit: string;
  times: readonly number[];
  lines: readonly Line[];
  marks?: readonly Mark[];
  /** The scale reaches at least this far. */
  least: number;
  format: (value: number) => string;
}): JSX.Element {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | undefined>(undefined);
  const marks = useRef<readonly Mark[]>([]);
  marks.current = props.marks ?? [];
  const data = useRef<uPlot.AlignedData>([[]]);
  data.current = [props.times.map((t) => t / 1000), ...props.lines.map((l) => l.values)] as uPlot.AlignedData;
  const names = props.lines.map((l) => l.label).join();

  useEffect(() => {
    const element = holder.current as HTMLDivElement;
    const make = (): void => {
      plot.current?.destroy();
      const axis: uPlot.Axis = {
        stroke: css("--dim"), grid: { stroke: css("--line"), width: 1 }, ticks: { show: false }, font: "11px sans-serif",
      };
      plot.current = new uPlot(
        {
          width: Math.max(200, element.clientWidth),
          height: HEIGHT,
          cursor: { y: false, points: { show: false } },
          legend: { show: false },
          scales: { x: { time: true, range: (_, min, max) => [Math.min(min ?? 0, (max ?? 0) - SPAN_MIN_S), max ?? 0] }, y: { range: (_, __, max) => [0, Math.max((max ?? 0) * 1.15, props.least)] } },
          axes: [
            { ...axis, values: (_, ticks) => ticks.map((t) => timeOf(t * 1000)), space: 90, size: 28, incrs: [5, 10, 15, 30, 60, 120, 300] },
            { ...axis, values: (_, ticks) => ticks.map((t) => props.format(t)), size: 62, space: 28 },
          ],
          series: [
            {},
            ...props.lines.map((l) => ({ label: l.label, stroke: css(l.colour), width: 1.6, dash: l.dash ?? [], points: { show: false } })),
          ],
          hooks: { draw: [drawMarks] },
        },
        data.current,
        element,
      );
    };
    const drawMarks = (u: uPlot): void => {
      const { ctx } = u;
      ctx.save();
      ctx.strokeStyle = css("--accent");
      ctx.fillStyle = css("--text");
      ctx.font = `${11 * devicePixelRatio}px sans-serif`;
      ctx.textAlign = "left";
      ctx.setLineDash([4 * devicePixelRatio, 3 * devicePixelRatio]);
      for (const mark of marks.current) {
        const x = u.valToPos(mark.ms / 1000, "x", true);
        if (x >= u.bbox.left && x <= u.bbox.left + u.bbox.width) {
          ctx.beginPath();
          ctx.moveTo(x, u.bbox.top);
          ctx.lineTo(x, u.bbox.top + u.bbox.height);
          ctx.stroke();
          ctx.fillText(mark.label, x + 4 * devicePixelRatio, u.bbox.top + 12 * devicePixelRatio);
        }
      }
      ctx.restore();
    };
    make();
    const sized = new ResizeObserver(() => plot.current?.setSize({ width: Math.max(200, element.clientWidth), height: HEIGHT }));
    sized.observe(element);
    const theme = new MutationObserver(make);
    theme.observe(document.documentElement, { attributes: true, attributeFilter: ["data-theme"] });
    return () => {
      sized.disconnect();
      theme.disconnect();
      plot.current?.destroy();
      plot.current = undefined;
    };
  }, [names]);

  useEffect(() => plot.current?.setData(data.current), [props.times, props.lines, props.marks]);

  return (
    <figure class="chart">
      <figcaption>
        {props.title} <span class="dim">{props.unit}</span>
        <span class="legend">
          {props.lines.map((l) => (
            <span key={l.label}>
              <svg width="18" height="8" aria-hidden="true">
                <line x1="0" y1="4" x2="18" y2="4" stroke={`var(${l.colour})`} stroke-width="2.5" stroke-dasharray={(l.dash ?? []).join(" ")} />
              </svg>
              {l.label} <b>{l.values.length && l.values.at(-1) != null ? props.format(l.values.at(-1) as number) : "–"}</b>
            </span>
          ))}
        </span>
      </figcaption>
      <div ref={holder} class="plot" aria-hidden="true" />
    </figure>
  );
}
