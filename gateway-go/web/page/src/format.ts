import { State } from "@vigil/client/gen/vigil/safety/v1/safety_pb.js";

/** A state as it is shown: a word, a sign that needs no colour, and a class. */
export interface Face {
  word: string;
  sign: string;
  look: string;
}

const FACES: Record<string, Face> = {
  STARTING: { word: "Starting", sign: "◔", look: "starting" },
  NORMAL: { word: "Normal", sign: "✓", look: "normal" },
  DEGRADED: { word: "Degraded", sign: "▲", look: "degraded" },
  RECOVERING: { word: "Recovering", sign: "↻", look: "recovering" },
  SAFE_STOP: { word: "Safe stop", sign: "■", look: "stop" },
};

/** The face of a state by its name in the table. */
export function faceOf(name: string): Face {
  return FACES[name] ?? { word: name || "Unknown", sign: "?", look: "unknown" };
}

/** The table's name of a state. */
export function stateName(state: State | undefined): string {
  return state === undefined ? "" : (State[state] ?? "");
}

/** The page is in English; what the browser is set to may even be no language at all. */
const LOCALE = "en-GB";
const zone = Intl.DateTimeFormat(LOCALE).resolvedOptions().timeZone;
const clock = new Intl.DateTimeFormat(LOCALE, { hour: "2-digit", minute: "2-digit", second: "2-digit", hour12: false });
const date = new Intl.DateTimeFormat("sv-SE", { year: "numeric", month: "2-digit", day: "2-digit" }); // as ISO 8601 writes it
const zoneName = new Intl.DateTimeFormat(LOCALE, { timeZoneName: "short" });

/** The zone in which times are shown. */
export const timeZone = zone;

/** The latest time that a Date can hold, ms. */
const TIME_MAX = 8.64e15;

/** A time within what can be shown. */
export function bounded(ms: number): number {
  return Number.isFinite(ms) ? Math.min(TIME_MAX, Math.max(-TIME_MAX, ms)) : 0;
}

/** Time of day; the zone stands at the top of the page. */
export function timeOf(ms: number): string {
  return clock.format(bounded(ms));
}

/** The same with its date, where that is not the date of `todayMs`. */
export function timeWithDate(ms: number, todayMs: number): string {
  const day = date.format(bounded(ms));
  return day === date.format(bounded(todayMs)) ? timeOf(ms) : `${day} ${timeOf(ms)}`;
}

/** Date and time with zone. */
export function fullTime(told: number): string {
  const ms = bounded(told);
  const name = zoneName.formatToParts(ms).find((p) => p.type === "timeZoneName")?.value ?? zone;
  return `${date.format(ms)} ${clock.format(ms)} ${name}`;
}

/** A time in µs since 1970, as ms. */
export function usToMs(us: bigint): number {
  return Number(us / 1000n);
}

/** How long, in the two largest units. */
export function span(ms: number): string {
  const s = Math.max(0, Math.floor(ms / 1000));
  const units: [number, string][] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = units.findIndex(([size]) => s >= size);
  if (at < 0) {
    return "0 s";
  }
  const [size, unit] = units[at] as [number, string];
  const next = units[at + 1];
  const rest = next ? Math.floor((s % size) / next[0]) : 0;
  return `${Math.floor(s / size)} ${unit}${next && rest ? ` ${rest} ${next[1]}` : ""}`;
}

/** A whole number with its thousands apart. */
export function count(n: number): string {
  return n.toLocaleString(LOCALE);
}

/** Microseconds with a fitting unit. */
export function latency(us: number): string {
  if (us === 0) {
    return "–";
  }
  return us < 1000 ? `${us} µs` : us < 1e6 ? `${(us / 1000).toPrecision(3)} ms` : `${(us / 1e6).toPrecision(3)} s`;
}

/** Bytes with a fitting unit. */
export function bytes(n: number): string {
  if (n === 0) {
    return "–";
  }
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const at = Math.min(units.length - 1, Math.floor(Math.log2(n) / 10));
  return `${at === 0 ? n : (n / 2 ** (10 * at)).toPrecision(3)} ${units[at]}`;
}

/** A number of so many a second. */
export function rate(n: number): string {
  return n >= 100 ? Math.round(n).toLocaleString(LOCALE) : n.toFixed(n > 0 && n < 10 ? 1 : 0);
}

/** The beginning of a digest. */
export function short(digest: string): string {
  return digest ? digest.slice(0, 12) : "–";
}
