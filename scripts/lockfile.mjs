/**
 * Makes package-lock.json anew, with an entry for every optional platform package: `npm run lockfile`.
 *
 * npm leaves out what the registry at hand does not serve, and then refuses `npm ci` because the lock file is not
 * complete. A mirror that serves only this platform's packages is enough for that. The entries added here are the
 * ones that npm writes itself, less the integrity, which needs the package.
 */

import { spawnSync } from "node:child_process";
import fs from "node:fs";

const LOCKFILE = "package-lock.json";
const SYSTEMS = [
  "aix",
  "android",
  "darwin",
  "freebsd",
  "linux",
  "netbsd",
  "openbsd",
  "openharmony",
  "sunos",
  "win32",
];
const PROCESSORS = ["arm64", "arm", "ia32", "loong64", "mips64el", "ppc64", "riscv64", "s390x", "x64"];

// A lock file without these entries is no start: npm would keep it as it is.
const before = fs.readFileSync(LOCKFILE, "utf8");
fs.rmSync(LOCKFILE);
const args = [
  "install",
  "--package-lock-only",
  "--omit-lockfile-registry-resolved",
  "--no-audit",
  "--no-fund",
];
const npm = spawnSync("npm", args, { stdio: "inherit" });
if (npm.status !== 0) {
  fs.writeFileSync(LOCKFILE, before);
  process.exit(npm.status ?? 1);
}

const lock = JSON.parse(fs.readFileSync(LOCKFILE, "utf8"));
const added = [];
for (const entry of Object.values(lock.packages)) {
  for (const [name, version] of Object.entries(entry.optionalDependencies ?? {})) {
    const place = `node_modules/${name}`;
    if (lock.packages[place] || !/^[0-9]/.test(version)) continue;
    const dev = entry.dev ? { dev: true } : {};
    lock.packages[place] = { version, ...platformOf(name), ...dev, optional: true };
    added.push(`${name}@${version}`);
  }
}
const inOrder = Object.entries(lock.packages).sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
lock.packages = Object.fromEntries(inOrder);
fs.writeFileSync(LOCKFILE, `${JSON.stringify(lock, undefined, 2)}\n`);
console.log(`${added.length} platform packages added that the registry does not serve here`);

/** os, cpu and libc by the words of the name, "@oxlint/binding-linux-x64-musl"; a name without them stops the script. */
function platformOf(name) {
  const words = name.split(/[/-]/);
  const os = SYSTEMS.find((system) => words.includes(system));
  const cpu = PROCESSORS.find((processor) => words.includes(processor));
  if (!os || !cpu) throw new Error(`${name}: the name does not tell its platform`);
  const libc = words.some((word) => word.startsWith("musl")) ? { libc: ["musl"] } : {};
  return { os: [os], cpu: [cpu], ...libc };
}
