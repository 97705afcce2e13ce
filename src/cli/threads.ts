/**
 * How many threads a command wants. The pool takes its size at its first use, which nothing before a command's own work
 * is: the bundle is CommonJS, for an ESM entry is itself read through the pool.
 */

/** Keeps a disk busy with small requests (PERFORMANCE.md). */
export const DISK_THREADS = 16;

/** What the user's environment says goes before. */
export function useThreads(count: number): void {
  process.env["UV_THREADPOOL_SIZE"] ??= String(count);
}

/** One thread for each core, for what only computes: more push each other's tables out of the caches. */
export function useThreadPerCore(): void {
  useThreads(Math.max(process.getBuiltinModule("node:os").availableParallelism(), 2));
}
