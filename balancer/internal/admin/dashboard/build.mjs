// Bundles src into dist. The same sources and versions give the same bytes.
import { build } from "esbuild";
import { copyFileSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";

rmSync("dist", { recursive: true, force: true });
mkdirSync("dist");
await build({
  entryPoints: { dashboard: "src/main.ts" },
  bundle: true, minify: true, format: "iife", target: "es2022", outdir: "dist", charset: "utf8", legalComments: "none", logLevel: "warning",
});
await build({
  entryPoints: { dashboard: "src/style.css" },
  bundle: true, minify: true, outdir: "dist", logLevel: "warning",
});
copyFileSync("src/index.html", "dist/index.html");
copyFileSync("src/icon.svg", "dist/icon.svg");
writeFileSync("dist/licenses.txt", "This dashboard contains uPlot:\n\n" + readFileSync("node_modules/uplot/LICENSE", "utf8"));
