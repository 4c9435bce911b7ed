// Builds the page into dist/, which the gateway embeds. With --dev it builds at each change, serves the page
// at http://127.0.0.1:5173/ and passes everything else on to a running gateway (VIGIL_GATEWAY, or 127.0.0.1:8000).
import { copyFile, mkdir, readdir, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { gzipSync } from "node:zlib";
import { createHash } from "node:crypto";
import { readdirSync, readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { join } from "node:path";
import esbuild from "esbuild";

const here = fileURLToPath(new URL(".", import.meta.url));
const dev = process.argv.includes("--dev");
const out = join(here, dev ? "dev" : "built");
const digest = createHash("sha256");
for (const folder of ["client/src", "page/src"]) {
  for (const name of readdirSync(join(here, folder), { recursive: true }).sort()) {
    if (/\.(ts|tsx|css)$/.test(name)) {
      digest.update(readFileSync(join(here, folder, name)));
    }
  }
}
const options = {
  absWorkingDir: here,
  entryPoints: ["page/src/main.tsx", "page/src/worker.ts", "page/src/page.css"].map((e) => ({ in: e, out: { "page/src/main.tsx": "page", "page/src/worker.ts": "worker", "page/src/page.css": "page" }[e] })),
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: !dev,
  sourcemap: dev,
  jsx: "automatic",
  jsxImportSource: "preact",
  legalComments: "linked",
  outdir: out,
  define: { BUILD: JSON.stringify(dev ? String(Date.now()) : digest.digest("hex").slice(0, 12)) },
  logLevel: "warning",
};
const FIXED = [["page/index.html", "index.html"], ["page/icon.svg", "icon.svg"]];

async function copyFixed() {
  await mkdir(out, { recursive: true });
  for (const [from, to] of FIXED) {
    await copyFile(join(here, from), join(out, to));
  }
}

async function build() {
  await rm(out, { recursive: true, force: true });
  await esbuild.build(options);
  await copyFixed();
  // Put in place file by file: dist/ itself is in the repository, with a note in it.
  const dist = join(here, "dist");
  for (const name of await readdir(dist)) {
    if (name !== "README.md") {
      await rm(join(dist, name), { recursive: true });
    }
  }
  let packed = 0;
  for (const name of await readdir(out)) {
    packed += name.endsWith(".txt") ? 0 : gzipSync(readFileSync(join(out, name))).length;
    await rename(join(out, name), join(dist, name));
  }
  await rm(out, { recursive: true });
  const limit = 250_000;
  if (packed > limit) {
    throw new Error(`the page has ${packed} bytes compressed, the limit is ${limit}`);
  }
  await writeFile(join(dist, "size.json"), `${JSON.stringify({ compressed_bytes: packed })}\n`);
  console.log(`page: ${packed} bytes compressed`);
}

async function serve() {
  await copyFixed();
  const context = await esbuild.context(options);
  await context.watch();
  const gateway = new URL(process.env.VIGIL_GATEWAY ?? "http://127.0.0.1:8000");
  const types = { html: "text/html", js: "text/javascript", css: "text/css", svg: "image/svg+xml", map: "application/json" };
  createServer(async (req, res) => {
    const name = new URL(req.url, "http://x").pathname.slice(1) || "index.html";
    const known = /^[a-z.]+$/.test(name) && (await stat(join(out, name)).catch(() => null));
    if (known) {
      res.setHeader("Content-Type", types[name.split(".").at(-1)] ?? "text/plain");
      res.end(readFileSync(join(out, name)));
      return;
    }
    const passed = request(
      { host: gateway.hostname, port: gateway.port, path: req.url, method: req.method, headers: { ...req.headers, host: gateway.host, origin: gateway.origin } },
      (answer) => {
        res.writeHead(answer.statusCode, answer.headers);
        answer.pipe(res);
      },
    );
    passed.on("error", (error) => res.writeHead(502).end(`no gateway at ${gateway.origin}: ${error.message}\n`));
    res.on("close", () => passed.destroy());
    req.pipe(passed);
  }).listen(5173, "127.0.0.1", () => console.log(`http://127.0.0.1:5173/, in front of ${gateway.origin}`));
}

await (dev ? serve() : build());
