/** Lets signals, timers and other work in: requests that the page cache serves end without a turn of the event loop. */

const MAX_MS_WITHOUT_TURN = 25;

// Asking for the time here would load node's performance hooks with every start: 1 ms; its promises of timers, 0.1.
let lastTurn = 0;

/** Gives the event loop a turn if it has had none from here for so long; throws the reason of an abort. */
export async function breathe(signal?: AbortSignal): Promise<void> {
  if (performance.now() - lastTurn >= MAX_MS_WITHOUT_TURN) {
    await new Promise((resolve) => setImmediate(resolve));
    lastTurn = performance.now();
  }
  signal?.throwIfAborted();
}
