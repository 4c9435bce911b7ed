// Unpacks the browser, its libraries and fonts into the folder given, whole or not at all; prints where they are.
import { chmodSync, existsSync, mkdirSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const folder = resolve(process.argv[2]);
if (!existsSync(join(folder, "fonts.conf"))) {
  const partial = `${folder}.${process.pid}.partial`;
  mkdirSync(partial, { recursive: true });
  process.env.TMPDIR = partial;
  const inside = fileURLToPath(new URL("node_modules/@sparticuz/chromium", import.meta.url));
  const { inflate } = await import(join(inside, "build", "lambdafs.js"));
  for (const name of ["chromium.br", "fonts.tar.br", "swiftshader.tar.br", "al2023.tar.br"]) {
    await inflate(join(inside, "bin", name));
  }
  writeFileSync(
    join(partial, "fonts.conf"),
    `<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig><dir>${join(folder, "fonts")}</dir><dir>/usr/share/fonts</dir><cachedir>${join(folder, "cache")}</cachedir></fontconfig>
`,
  );
  mkdirSync(join(partial, "locales")); // else the browser makes it beside itself, for its own user only
  for (const name of ["chromium", "."]) {
    chmodSync(join(partial, name), 0o755);
  }
  try {
    renameSync(partial, folder);
  } catch (error) {
    rmSync(partial, { recursive: true });
    if (!existsSync(join(folder, "fonts.conf"))) {
      throw error;
    }
  }
}
console.log(
  JSON.stringify({
    executable: join(folder, "chromium"),
    env: { LD_LIBRARY_PATH: join(folder, "al2023", "lib"), FONTCONFIG_PATH: folder, FONTCONFIG_FILE: join(folder, "fonts.conf") },
  }),
);
