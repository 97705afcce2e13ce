/**
 * Opening: a filename, options or both become a node with its children. Formats are probed where none is given;
 * files that are named inside an image pass the open gate.  @qemu block.c: bdrv_open_inherit
 */

import { assertCanWait, type MainLoop } from "./aio-context.ts";
import { type BlockChild, type ChildRole } from "./child.ts";
import { type Coroutine, coWrapperMixedUnlocked, graphRdlock } from "./coroutine.ts";
import {
  allDrivers,
  type BlockDriver,
  type DriverEntry,
  findDriver,
  loadDriver,
  type NodeOps,
} from "./driver.ts";
import { assert, BlockError } from "./errors.ts";
import { fullBackingFilename, knownBackingFilename, protocolPrefix, refreshFilename } from "./filename.ts";
import { attachChild, refNode, refreshLimits, unrefNode } from "./graph.ts";
import type { Guard } from "./guard.ts";
import { refreshTotalSectors } from "./length.ts";
import { BlockNode } from "./node.ts";
import { checkForceShare, childFlags, type OpenFlags, takeFlags } from "./open-flags.ts";
import {
  flattenOptions,
  isJsonFilename,
  type NestedOptions,
  type Options,
  type OptionTable,
  type OptionValues,
  parseJsonFilename,
  takeOptions,
  takePrefix,
  takeString,
} from "./options.ts";
import { probeNode } from "./probe.ts";
import type { ThrottleGroup } from "./throttle.ts";

/** A file that an image names: it is followed only if the gate lets it. */
export interface ExternalReference {
  readonly kind: "backing file" | "data file" | "extent" | "parent";
  /** As it would be opened: relative names are resolved. */
  readonly filename: string;
  /** The node whose image names it. */
  readonly from: BlockNode;
}

/** Throws to refuse; may answer the options of a node that is opened in the file's place. */
export type OpenGate = (reference: ExternalReference) => Promise<NestedOptions | void>;

/** A file that an image names, as it stands there: nothing is resolved, nothing looked for. */
export interface NamedReference {
  readonly kind: ExternalReference["kind"];
  readonly filename: string;
  /** The format that the image says it has. */
  readonly format?: string | undefined;
}

/** Key material that a user defined under an id (`--object secret`).  @qemu QCryptoSecret */
export interface Secret {
  readonly data: Uint8Array;
}

/** What an open asks of its surroundings; children inherit it. */
export interface OpenEnvironment {
  readonly gate: OpenGate;
  /** The images come from untrusted hands: nothing that they name is followed, nothing guessed, and there are limits. */
  readonly guard?: Guard | undefined;
  /** Is told of every file that an image names, also of those that nobody is going to open. */
  readonly onReference?: (reference: NamedReference) => void;
  /** Gets the text of a warning, without "warning: ", and what qemu's tools print after its line, which may end in none. */
  readonly warn: (message: string, hint?: string) => void;
  /** Gets the text of an error that does not end the work: a close that could not write its caches.  @qemu error_report */
  readonly error?: (message: string) => void;
  /** Finds the secret of an id, for drivers that decrypt (`key-secret`); undefined: there is none. */
  readonly secret?: (id: string) => Secret | undefined;
  /** Gets a line that qemu's tools print on stderr as it stands; without it, `warn` gets it. */
  readonly message?: (line: string) => void;
  /** Gets a line that qemu's tools print on stdout at once: blkdebug's suspended requests. */
  readonly notice?: (line: string) => void;
  /** Prints a line on stderr and ends the process: a mirror has found a difference. Without it that is an error. */
  readonly fatal?: (line: string) => never;
  /** Finds the throttle group of an id (`--object throttle-group`).  @qemu throttle_group_exists */
  readonly throttleGroup?: (id: string) => ThrottleGroup | undefined;
  /** Ends what takes long and is no request of its own: writing zeroes out where space is set aside. */
  readonly signal?: AbortSignal | undefined;
  /** Where new files are made until they get their names; without it, at their names. */
  readonly staging?: FileStaging;
}

/** Files that are being made elsewhere than at their names. */
export interface FileStaging {
  /**
   * Opens the file that is to get this name, to be emptied and written. `lock` throws where somebody else uses it as he
   * must not, and gives whether somebody uses it at all.
   */
  readonly create: (filename: string, lock: (fd: number) => boolean) => number;
  /** Where the file of this name lies at present. */
  readonly locate: (filename: string) => string;
}

/** Follows every reference, as qemu-img does. */
export const openGate: OpenGate = async () => {};

export interface OpenRequest {
  readonly filename?: string | undefined;
  readonly options: Options;
  readonly flags: OpenFlags;
  readonly environment: OpenEnvironment;
  /** Only protocols: no format is probed.  @qemu BDRV_O_PROTOCOL */
  readonly protocol?: boolean;
  /** Images whose backing files are being opened, overlay first. */
  readonly overlays?: readonly string[];
}

/** What the driver's `open` gets: the node as it is made, its options, and ways to open children. */
export interface OpeningNode<T extends OptionTable = OptionTable> {
  readonly node: BlockNode;
  readonly options: OptionValues<T>;
  readonly flags: OpenFlags;
  readonly environment: OpenEnvironment;
  /** Opens the child `file`, which must be there. Its role by the driver's kind, unless given. */
  readonly openFileChild: (co: Coroutine<"none">, role?: ChildRole) => Promise<BlockChild>;
  /** Opens another child by the options under `key`, or by a filename that the user gave; undefined if there is neither. */
  readonly openChild: (
    co: Coroutine<"none">,
    key: string,
    role: ChildRole,
    filename?: string,
  ) => Promise<BlockChild | undefined>;
  /**
   * Tells of a file that the image names (backing files aside, of which the node tells). To be called for all of them
   * before the first is opened, so that who only wants to know hears of each.
   */
  readonly nameReference: (reference: NamedReference) => void;
  /** Keys of options that nobody has taken yet: an array's children are counted by them. */
  readonly optionKeys: () => readonly string[];
  /** Takes the options whose keys start with one of `prefixes`, for what no table can list ("inject-error.0.event"). */
  readonly takeOptionsUnder: (prefixes: readonly string[]) => Options;
  /**
   * Opens a child that the image names (`filename` as resolved), after the gate; the user's options under `key` go first.
   * `alsoNamed`: they come beside the name, not in its place.
   */
  readonly openReference: (
    co: Coroutine<"none">,
    key: string,
    role: ChildRole,
    kind: ExternalReference["kind"],
    filename: string,
    alsoNamed?: boolean,
  ) => Promise<BlockChild>;
  /** Goes on read-only if the user allowed that (auto-read-only); else throws `reason`.  @qemu bdrv_apply_auto_read_only */
  readonly applyAutoReadOnly: (reason: BlockError) => void;
  /** For a driver that can only be read: read-only, or an error if writing was asked for. */
  readonly requireReadOnly: () => void;
}

/** @qemu BDRV_CHILD_IMAGE */
const IMAGE_ROLE: ChildRole = { data: true, metadata: true, primary: true };
const FILTERED_ROLE: ChildRole = { filtered: true, primary: true };
const COW_ROLE: ChildRole = { cow: true };

/** Longer chains are refused: names that differ may still lead in a circle. */
const MAX_CHAIN_LENGTH = 1000;

/** Characters of a node name. */
const MAX_NODE_NAME = 31;

let namesMade = 0;

/** Opens a node; the caller gets the only reference to it. */
export async function openNode(
  caller: Coroutine<"none"> | MainLoop,
  request: OpenRequest,
): Promise<BlockNode> {
  const opening = await prepareOpen(caller, request);
  const { node, options } = opening;
  try {
    await openDriver(caller, node, opening.handle);
    refreshFilename(node);
    request.environment.guard?.checkLength(node);
    if (opening.backing !== "none") await openBacking(caller, node, opening, request.overlays ?? []);
    refreshFilename(node);
    checkLeftOver(node.driver, options);
    return node;
  } catch (error) {
    await unrefNode(caller, node).catch((closing: unknown) => {
      // Why it can't be opened says more than what could not be flushed.
      if (!(closing instanceof BlockError)) throw closing;
    });
    throw error;
  }
}

/**
 * Opens the driver on a node whose children are not open yet, and finds the node's length and limits. Because it
 * calls `refreshTotalSectors`, which polls outside coroutines, the caller holds the lock of the node's
 * AioContext, unless it is a coroutine.  @qemu bdrv_open_driver
 */
export async function openDriver(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  handle: OpeningNode,
): Promise<void> {
  assert(caller.context === node.context, "openDriver: the caller is of another AioContext than the node");
  if (caller.kind === "main-loop") assertCanWait(caller, "openDriver");
  const ops = await runDriverOpen(caller, node, handle);
  const { guard, onReference } = handle.environment;
  node.setOps(guard ? guard.watch(node, ops) : ops);
  const { backingFilename, backingFormat } = node;
  if (backingFilename)
    onReference?.({ kind: "backing file", filename: backingFilename, format: backingFormat });
  try {
    if (caller.kind === "main-loop") await refreshTotalSectors(caller, node, node.totalSectors);
    else await graphRdlock(caller, (co) => refreshTotalSectors(co, node, node.totalSectors));
  } catch (error) {
    throw BlockError.wrap("Could not refresh total sector count", error);
  }
  await refreshLimits(caller, node);
}

const runDriverOpen = coWrapperMixedUnlocked(
  (co: Coroutine<"none">, node: BlockNode, handle: OpeningNode): Promise<NodeOps> =>
    node.driver.open(co, handle),
);

/** What `openNode` knows before the driver is called. */
interface Opening {
  readonly node: BlockNode;
  readonly handle: OpeningNode;
  /** What nobody has taken yet. */
  readonly options: Options;
  readonly environment: OpenEnvironment;
  /** "none": the user wants no backing file; "default": the one that the image names, unless options say another. */
  readonly backing: "none" | "default";
}

/** Finds driver and options, opens the file to be probed, and makes the node. */
async function prepareOpen(caller: Coroutine<"none"> | MainLoop, request: OpenRequest): Promise<Opening> {
  let { filename } = request;
  let options: Options = new Map(request.options);
  if (filename !== undefined && isJsonFilename(filename)) {
    options = new Map([...parseJsonFilename(filename), ...options]);
    filename = undefined;
  }
  const explicitFlags = new Set(INHERITED_FLAGS.filter((key) => options.has(key)));
  let driver = await fillOptions(filename, options, request.protocol ?? false);
  const flags = takeFlags(options, request.flags);
  const backing = takeBackingChoice(options, flags, request.environment);
  let file: BlockNode | undefined;
  if (!driver || !isProtocol(driver)) {
    file = await openFileNode(caller, filename, options, flags, driver, request);
    if (!file && !driver) throw new BlockError("EINVAL", "Must specify either driver or file");
  }
  let probed = false;
  try {
    if (!driver) {
      request.environment.guard?.requireFormat();
      driver = await probeNode(caller, file as BlockNode, filename ?? (file as BlockNode).filename);
      probed = true;
    }
    const node = makeNode(caller, driver, options, flags, filename);
    node.explicitFlags = explicitFlags;
    node.probed = probed && driver.formatName === "raw";
    const handle = makeHandle(node, options, request, file);
    file = undefined;
    return { node, handle, options, environment: request.environment, backing };
  } catch (error) {
    if (file) await unrefNode(caller, file);
    throw error;
  }
}

/** Options of flags that children inherit where they have none of their own. */
const INHERITED_FLAGS = ["read-only", "cache.direct", "cache.no-flush"] as const;
export type InheritedFlag = (typeof INHERITED_FLAGS)[number];

/** Whether a `backing` is to be opened: "" and null say no. */
function takeBackingChoice(
  options: Options,
  flags: OpenFlags,
  { warn }: OpenEnvironment,
): "none" | "default" {
  const value = options.get("backing");
  if (value !== null && value !== "") return flags.noBacking ? "none" : "default";
  if (value === "") warn('Use of "backing": "" is deprecated; use "backing": null instead');
  options.delete("backing");
  return "none";
}

/** Finds the driver by `driver=` or the filename's prefix, and lets a protocol make options of the filename.  @qemu bdrv_fill_options */
async function fillOptions(
  filename: string | undefined,
  options: Options,
  protocol: boolean,
): Promise<BlockDriver | undefined> {
  const driverName = takeString(options, "driver");
  let driver: BlockDriver | undefined;
  if (driverName !== undefined) {
    driver = await loadDriver(driverName);
    if (!driver) throw new BlockError("EINVAL", `Unknown driver '${driverName}'`);
  }
  if (!(driver ? isProtocol(driver) : protocol)) return driver;
  if (filename === undefined) {
    if (driver) return driver;
    if (!options.has("filename")) throw new BlockError("EINVAL", "Must specify either driver or file");
    // A filename that came as an option has no prefix.
    return findPlainProtocol(String(options.get("filename"))).load();
  }
  if (options.has("filename"))
    throw new BlockError("EINVAL", "Can't specify 'file' and 'filename' options at the same time");
  driver ??= await findProtocol(filename).load();
  const parseFilename = driver.kind === "format" ? undefined : driver.parseFilename;
  if (!parseFilename) options.set("filename", filename);
  else for (const [key, value] of parseFilename(filename)) if (!options.has(key)) options.set(key, value);
  return driver;
}

/** Reaches storage by itself, or by a filename with its prefix: the core opens no `file` for it. */
function isProtocol(driver: Pick<DriverEntry, "kind" | "prefix">): boolean {
  return driver.kind === "protocol" || (driver.kind === "filter" && driver.prefix !== undefined);
}

/** Whether a child without a driver's name is storage rather than an image to be probed.  @qemu bdrv_inherited_options */
function isProtocolChild(parent: BlockDriver, role: ChildRole, parentIsProtocol: boolean): boolean {
  if (parent.kind === "format" || role.metadata) return true;
  return role.filtered === true && (parentIsProtocol || isProtocol(parent));
}

/** @qemu bdrv_find_protocol */
export function findProtocol(filename: string): DriverEntry {
  const prefix = protocolPrefix(filename);
  if (prefix === undefined) return findPlainProtocol(filename);
  for (const driver of allDrivers()) if (driver.kind !== "format" && driver.prefix === prefix) return driver;
  throw new BlockError("EINVAL", `Unknown protocol '${prefix}'`);
}

/** The driver for a name without a prefix: one that claims it (a block device), or `file`. */
function findPlainProtocol(filename: string): DriverEntry {
  for (const driver of allDrivers()) if (driver.claims?.(filename)) return driver;
  const driver = findDriver("file");
  if (!driver) throw new BlockError("EINVAL", "Unknown protocol 'file'");
  return driver;
}

/** The node under `key`: one that exists already (by reference), or a new one; undefined if the user named none.  @qemu bdrv_open_child_bs */
async function openChildNode(
  caller: Coroutine<"none"> | MainLoop,
  key: string,
  filename: string | undefined,
  options: Options,
  flags: OpenFlags,
  request: Pick<OpenRequest, "environment" | "protocol" | "overlays">,
): Promise<BlockNode | undefined> {
  const childOptions = takePrefix(options, `${key}.`);
  const reference = takeString(options, key);
  if (reference !== undefined) {
    if (childOptions.size > 0 || filename !== undefined)
      throw new BlockError(
        "EINVAL",
        "Cannot reference an existing block device with additional options or a new filename",
      );
    const node = caller.context.nodes.get(reference);
    if (!node)
      throw new BlockError("ENODEV", `Cannot find device='${reference}' nor node-name='${reference}'`);
    refNode(node);
    return node;
  }
  if (childOptions.size === 0 && filename === undefined) return undefined;
  return openNode(caller, { ...request, filename, options: childOptions, flags });
}

/** Opens what a format or filter stands on, before the driver is known if it must be probed. */
async function openFileNode(
  caller: Coroutine<"none"> | MainLoop,
  filename: string | undefined,
  options: Options,
  flags: OpenFlags,
  driver: BlockDriver | undefined,
  request: OpenRequest,
): Promise<BlockNode | undefined> {
  const kind = driver?.kind ?? "format";
  return openChildNode(caller, "file", filename, options, childFlags(flags, kind, IMAGE_ROLE), {
    environment: request.environment,
    // Whatever stands on it, it is never probed: its driver is named, or it is a protocol.
    protocol: true,
  });
}

function makeNode(
  caller: Coroutine<"none"> | MainLoop,
  driver: BlockDriver,
  options: Options,
  flags: OpenFlags,
  filename: string | undefined,
): BlockNode {
  const { context } = caller;
  checkForceShare(flags);
  const given = takeString(options, "node-name");
  if (given !== undefined && !/^[A-Za-z][A-Za-z0-9._-]*$/.test(given))
    throw new BlockError("EINVAL", `Invalid node-name: '${given}'`);
  if (given !== undefined && context.nodes.has(given))
    throw new BlockError("EINVAL", `Duplicate nodes with node-name='${given}'`);
  if (given !== undefined && given.length > MAX_NODE_NAME)
    throw new BlockError("EINVAL", "Node name too long");
  const name = given ?? `#block${String(namesMade++).padStart(3, "0")}`;
  const ownOptions: Options = new Map();
  const givenOptions: Options = new Map();
  const changeableOptions: Options = new Map();
  for (const [key, spec] of Object.entries(driver.options)) {
    const value = options.get(key);
    if (value !== undefined) givenOptions.set(key, value);
    if (spec.strong && value !== undefined) ownOptions.set(key, value);
    if (spec.changeable && value !== undefined) changeableOptions.set(key, value);
  }
  const node = new BlockNode(context, name, driver, filename ?? "", flags, ownOptions);
  node.givenOptions = givenOptions;
  node.changeableOptions = changeableOptions;
  context.nodes.set(name, node);
  return node;
}

/** @qemu bdrv_open_child, for the driver's `open` */
function makeHandle(
  node: BlockNode,
  options: Options,
  request: OpenRequest,
  file: BlockNode | undefined,
): OpeningNode {
  const { driver, flags } = node;
  const { environment } = request;
  let fileNode = file;
  const openChild = async (co: Coroutine<"none">, key: string, role: ChildRole, filename?: string) => {
    let child: BlockNode | undefined;
    if (key === "file" && fileNode) [child, fileNode] = [fileNode, undefined];
    else {
      child = await openChildNode(co, key, filename, options, childFlags(flags, driver.kind, role), {
        environment,
        protocol: isProtocolChild(driver, role, request.protocol ?? false),
      });
    }
    return child && attachChild(co, node, child, key, role);
  };
  return {
    node,
    flags,
    environment,
    options: takeOptions(driver.options, options),
    openChild,
    nameReference: (reference) => environment.onReference?.(reference),
    optionKeys: () => [...options.keys()],
    takeOptionsUnder(prefixes) {
      const taken: Options = new Map();
      for (const [key, value] of options) {
        if (!prefixes.some((prefix) => key.startsWith(prefix))) continue;
        taken.set(key, value);
        options.delete(key);
      }
      return taken;
    },
    async openFileChild(co, role = driver.kind === "filter" ? FILTERED_ROLE : IMAGE_ROLE) {
      const child = await openChild(co, "file", role);
      if (!child) throw new BlockError("EINVAL", 'A block device must be specified for "file"');
      return child;
    },
    async openReference(co, key, role, kind, filename, alsoNamed = false) {
      const byUser = alsoNamed ? undefined : await openChild(co, key, role);
      if (byUser) return byUser;
      const instead = await passGate(environment, { kind, filename, from: node }, key, options);
      return (await openChild(co, key, role, instead ? undefined : filename)) as BlockChild;
    },
    applyAutoReadOnly(reason) {
      if (node.flags.readOnly) return;
      if (!node.flags.autoReadOnly) throw reason;
      node.flags = { ...node.flags, readOnly: true };
    },
    requireReadOnly() {
      if (node.flags.readOnly) return;
      if (!node.flags.autoReadOnly)
        throw new BlockError("EACCES", "Image is read-only", { node: node.nodeName });
      node.flags = { ...node.flags, readOnly: true };
    },
  };
}

/** @qemu bdrv_open_backing_file */
async function openBacking(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  opening: Opening,
  overlays: readonly string[],
): Promise<void> {
  const { options } = opening;
  const byUser = options.has("backing") || [...options.keys()].some((key) => key.startsWith("backing."));
  if (!byUser && !node.backingFilename) return;
  if (node.driver.kind !== "format" || !node.driver.supportsBacking)
    throw new BlockError("EINVAL", "Driver doesn't support backing files");
  try {
    const backing = await openBackingNode(caller, node, opening, overlays);
    if (backing) await attachChild(caller, node, backing, "backing", COW_ROLE);
  } catch (error) {
    throw BlockError.wrap("Could not open backing file", error);
  }
  node.childrenOverridden = byUser && node.backing?.node.filename !== knownBackingFilename(node);
  await refreshLimits(caller, node);
}

async function openBackingNode(
  caller: Coroutine<"none"> | MainLoop,
  node: BlockNode,
  { options, environment }: Opening,
  overlays: readonly string[],
): Promise<BlockNode | undefined> {
  const isNamed =
    options.has("backing.file.filename") || options.has("backing.filename") || options.has("backing");
  let filename = isNamed ? undefined : fullBackingFilename(node);
  if (filename !== undefined) {
    const reference = { kind: "backing file", filename, from: node } as const;
    if (await passGate(environment, reference, "backing", options)) filename = undefined;
  }
  if (filename !== undefined) {
    if (node.backingFormat && !options.has("backing.driver"))
      options.set("backing.driver", node.backingFormat);
    if (filename === node.exactFilename || overlays.includes(filename))
      throw new BlockError("EINVAL", `Backing file '${filename}' creates an infinite loop.`);
    if (overlays.length >= MAX_CHAIN_LENGTH) throw new BlockError("ELOOP", "The backing chain is too long");
  }
  return openChildNode(
    caller,
    "backing",
    filename,
    options,
    childFlags(node.flags, node.driver.kind, COW_ROLE),
    {
      environment,
      overlays: [...overlays, node.exactFilename],
    },
  );
}

/** Asks the gate. True: what is to be opened instead stands in `options` under `key`. */
async function passGate(
  { gate, guard }: OpenEnvironment,
  reference: ExternalReference,
  key: string,
  options: Options,
): Promise<boolean> {
  const instead = await gate(reference);
  if (instead) flattenOptions({ [key]: instead }, "", options);
  else guard?.refuseReference(reference.kind, reference.filename);
  return instead !== undefined;
}

function checkLeftOver(driver: BlockDriver, options: Options): void {
  const [key] = options.keys();
  if (key === undefined) return;
  const message = isProtocol(driver)
    ? `Block protocol '${driver.formatName}' doesn't support the option '${key}'`
    : `Block format '${driver.formatName}' does not support the option '${key}'`;
  throw new BlockError("EINVAL", message);
}
