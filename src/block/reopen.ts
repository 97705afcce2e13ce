/** Changing flags and options of open nodes, all of them or none.  @qemu bdrv_reopen_multiple */

import type { MainLoop } from "./aio-context.ts";
import type { BlockChild, PermPair } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import type { ReopenAction } from "./driver.ts";
import { BlockError } from "./errors.ts";
import { refreshLimits, setEdgePerm, subtreeDrainedBegin, subtreeDrainedEnd } from "./graph.ts";
import { flush } from "./io.ts";
import type { BlockNode } from "./node.ts";
import { checkForceShare, type OpenFlags, takeFlags } from "./open-flags.ts";
import { type Options, takeBool, takeOptions, takePrefix } from "./options.ts";

/** What is to change; the rest stays. */
export interface ReopenChanges {
  /** Of the image and of all below it but backing files. */
  readonly readOnly?: boolean | undefined;
  /** Of the image and of all below it. */
  readonly direct?: boolean | undefined;
  readonly noFlush?: boolean | undefined;
  /** Options as for an open; those of a child under its name ("file.cache.direct"). */
  readonly options?: Options | undefined;
}

/** What one node becomes. */
interface Step {
  readonly node: BlockNode;
  readonly flags: OpenFlags;
  /** All values of the driver's changeable options. */
  readonly options: Options;
}

/** Reopens `root`'s node and what is below it, and gives `root` the permissions `perm`. An error leaves all as it was. */
export async function reopenSubtree(
  caller: Coroutine<"none"> | MainLoop,
  root: BlockChild,
  changes: ReopenChanges,
  permFor: (readOnly: boolean) => PermPair,
): Promise<void> {
  const { node } = root;
  const steps = new Map<BlockNode, Step>();
  planSubtree(steps, node, changes, new Map(changes.options));
  const changed = [...steps.values()].filter(isChange);
  if (changed.length === 0) return;
  const readOnly = steps.get(node)?.flags.readOnly ?? node.readOnly;
  // Who goes read-only writes its caches back first, through children that can still be written.
  if (readOnly) changed.reverse();
  await subtreeDrainedBegin(caller, node);
  try {
    const prepared = await prepareAll(caller, changed, () => setEdgePerm(caller, root, permFor(readOnly)));
    for (const action of prepared) action.commit();
    for (const { committed } of prepared) if (committed) await runStep(caller, committed);
  } finally {
    subtreeDrainedEnd(node);
  }
  for (const each of steps.keys()) await refreshLimits(caller, each);
}

/** Prepares every step and then the change of permissions; an error undoes what was prepared. */
async function prepareAll(
  caller: Coroutine<"none"> | MainLoop,
  steps: readonly Step[],
  changePerm: () => Promise<void>,
): Promise<readonly ReopenAction[]> {
  const prepared: ReopenAction[] = [];
  try {
    for (const step of steps) prepared.push(await prepareReopen(caller, step));
    await changePerm();
    return prepared;
  } catch (error) {
    for (const { abort } of prepared.reverse()) await runStep(caller, abort);
    throw error;
  }
}

/** Notes what each node becomes, children first. */
function planSubtree(
  steps: Map<BlockNode, Step>,
  node: BlockNode,
  inherited: Pick<ReopenChanges, "readOnly" | "direct" | "noFlush">,
  given: Options,
): void {
  const old = node.flags;
  const ofChildren = new Map<string, Options>();
  for (const key of node.children.keys()) ofChildren.set(key, takePrefix(given, `${key}.`));
  const forceShare = takeBool(new Map(given), "force-share") ?? old.forceShare;
  if (forceShare !== old.forceShare) throw new BlockError("EINVAL", "Cannot change the option 'force-share'");
  const flags = takeFlags(given, {
    ...old,
    readOnly: inherited.readOnly ?? old.readOnly,
    direct: inherited.direct ?? old.direct,
    noFlush: inherited.noFlush ?? old.noFlush,
  });
  checkForceShare(flags);
  const options = takeChangeable(node, given);
  const passed = {
    direct: flags.direct === old.direct ? undefined : flags.direct,
    noFlush: flags.noFlush === old.noFlush ? undefined : flags.noFlush,
  };
  const readOnly = flags.readOnly === old.readOnly ? undefined : flags.readOnly;
  for (const [key, edge] of node.children)
    planSubtree(
      steps,
      edge.node,
      inheritedBy(edge.node, edge.role.cow ? passed : { ...passed, readOnly }),
      ofChildren.get(key) ?? new Map(),
    );
  steps.set(node, { node, flags, options });
}

/** What the user gave a node itself stays.  @qemu bdrv_inherited_options */
function inheritedBy(
  { explicitFlags }: BlockNode,
  { readOnly, direct, noFlush }: Pick<ReopenChanges, "readOnly" | "direct" | "noFlush">,
): Pick<ReopenChanges, "readOnly" | "direct" | "noFlush"> {
  return {
    readOnly: explicitFlags.has("read-only") ? undefined : readOnly,
    direct: explicitFlags.has("cache.direct") ? undefined : direct,
    noFlush: explicitFlags.has("cache.no-flush") ? undefined : noFlush,
  };
}

/** The driver's changeable options with their new values; what else is named must be as it is.  @qemu bdrv_reopen_prepare */
function takeChangeable(node: BlockNode, given: Options): Options {
  const values = new Map(node.changeableOptions);
  for (const [key, value] of given) {
    const text = String(value);
    if (node.driver.options[key]?.changeable) values.set(key, value);
    else if ((key === "file" || key === "backing") && node.children.get(key)?.node.nodeName !== text)
      throw new BlockError("ENODEV", `Cannot find device='' nor node-name='${text}'`);
    else if (currentValue(node, key) !== text)
      throw new BlockError("EINVAL", `Cannot change the option '${key}'`);
  }
  // Bad values are refused before anything is changed.
  takeOptions(node.driver.options, new Map(values));
  return values;
}

/** The value of what is fixed while a node is open; undefined: it has none. */
function currentValue(node: BlockNode, key: string): string | undefined {
  if (key === "driver") return node.driver.formatName;
  if (key === "node-name") return node.nodeName;
  if (key === "file" || key === "backing") return node.children.get(key)?.node.nodeName;
  if (key === "filename" && node.driver.kind === "protocol") return node.exactFilename;
  const own = node.ownOptions.get(key) ?? node.givenOptions.get(key);
  return own === undefined ? undefined : String(own);
}

function isChange({ node, flags, options }: Step): boolean {
  const keys = Object.keys(flags) as (keyof OpenFlags)[];
  if (keys.some((key) => flags[key] !== node.flags[key])) return true;
  return [...options].some(([key, value]) => node.changeableOptions.get(key) !== value);
}

/** After this the node shows its new state; the action makes it final or takes it back. */
const prepareReopen = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, { node, flags, options }: Step): Promise<ReopenAction> => {
    const { flags: oldFlags, changeableOptions: oldOptions } = node;
    if (flags.readOnly && !oldFlags.readOnly) await graphRdlock(co, (reader) => flush(reader, node));
    const { readOnly, direct, noFlush } = flags;
    const action = await node.ops.reopen?.(co, { readOnly, direct, noFlush, options });
    node.flags = flags;
    node.changeableOptions = options;
    return {
      commit: () => {
        for (const [key, value] of options)
          if (node.driver.options[key]?.strong) node.ownOptions.set(key, value);
        action?.commit();
      },
      committed: action?.committed,
      abort: (undo) => {
        node.flags = oldFlags;
        node.changeableOptions = oldOptions;
        return action?.abort(undo);
      },
    };
  },
);

const runStep = coWrapperMixedUnlocked(
  async (co: Coroutine<"none">, step: ReopenAction["abort"]): Promise<void> => step(co),
);
