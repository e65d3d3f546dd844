// Builds the page: src and noVNC become dist, which Go embeds. `--watch` rebuilds on every change.
import { build, context } from 'esbuild';
import { cp, mkdir, readdir, readFile, rm, writeFile } from 'node:fs/promises';

const dist = new URL('dist/', import.meta.url);
const src = new URL('src/', import.meta.url);

await mkdir(dist, { recursive: true });
for (const name of await readdir(dist)) {
    if (name !== '.placeholder') {
        await rm(new URL(name, dist), { recursive: true });
    }
}

for (const name of await readdir(src)) {
    if (/\.(html|svg|webmanifest)$/.test(name)) {
        await cp(new URL(name, src), new URL(name, dist));
    }
}

// noVNC is under the MPL 2.0, which asks to say where its source is; pako, which it includes, is under the MIT license.
const novnc = new URL('node_modules/@novnc/novnc/', import.meta.url);
const { version } = JSON.parse(await readFile(new URL('package.json', novnc), 'utf8'));
await writeFile(new URL('LICENSES.txt', dist),
    `The script of the desktop page includes noVNC ${version}, whose source is the npm package @novnc/novnc of that version.\n\n` +
    await readFile(new URL('LICENSE.txt', novnc), 'utf8') + '\n\npako:\n\n' +
    await readFile(new URL('vendor/pako/LICENSE', novnc), 'utf8'));

const options = {
    entryPoints: ['theme.js', 'list.js', 'desktop.js', 'style.css'].map((f) => new URL(f, src).pathname),
    outdir: dist.pathname,
    bundle: true,
    splitting: true,
    format: 'esm',
    minify: true,
    target: ['chrome109', 'firefox115', 'safari16.4'],
    banner: { js: '/* Includes noVNC (MPL 2.0) on the desktop page: see LICENSES.txt beside this file. */' },
    external: ['*.svg'], // fetched by the browser from beside the style sheet
    legalComments: 'none',
    logLevel: 'info',
};

if (process.argv.includes('--watch')) {
    await (await context(options)).watch();
} else {
    await build(options);
}
