// Where no language is set (LANG=C, as on panels), Chromium calls itself "en-US@posix", which is none: Intl throws,
// also in libraries that ask for it when they are loaded. So this comes before them.
try {
  new Intl.NumberFormat(navigator.language);
} catch {
  Object.defineProperty(navigator, "language", { value: "en-GB", configurable: true });
}
export {};
