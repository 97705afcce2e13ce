/** Modules that are loaded when they are first used: start-up is a feature. */

/**
 * Makes of `() => import("./x.ts")` a function that has something done with what the module exports. Once that is
 * loaded, it is done at once: a request must not pay for a promise more.
 */
export function lazily<M>(load: () => Promise<M>): <R>(use: (module: M) => Promise<R>) => Promise<R> {
  let loaded: M | undefined;
  return (use) => {
    if (loaded !== undefined) return use(loaded);
    return load().then((module) => {
      loaded = module;
      return use(module);
    });
  };
}
