/** Opening: a descriptor, or the header of a sparse extent, becomes the list of extents.  @qemu vmdk_open */

import type { BlockChild, ChildRole } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import { BlockError } from "../../src/block/errors.ts";
import { isAbsolute, protocolPrefix, resolveReference } from "../../src/block/filename.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { SECTOR_SIZE } from "../../src/block/units.ts";
import { openFailed } from "../opening.ts";
import { Mutex } from "../qcow2/mutex.ts";
import {
  DESCRIPTOR_BYTES,
  type ExtentLine,
  parseCreateType,
  parseExtents,
  parseIdentity,
  readDescriptor,
  readIdentityText,
} from "./descriptor.ts";
import { Magic } from "./layout.ts";
import { openSeSparse } from "./se-sparse.ts";
import { type OpenedSparse, openCowd, openHosted } from "./sparse.ts";
import { type Extent, stateOf, type VmdkState } from "./state.ts";

/** What a descriptor may say that it is.  @qemu vmdk_open_desc_file */
const CREATE_TYPES: readonly string[] = [
  "monolithicFlat",
  "vmfs",
  "vmfsSparse",
  "seSparse",
  "twoGbMaxExtentSparse",
  "twoGbMaxExtentFlat",
];

const NO_SE_WRITES = "No write support for seSparse images available";

/** Each is an open file. */
const MAX_EXTENTS = 32768;

/** An extent that does not know yet where it begins. */
type Unplaced = Extent extends infer E
  ? E extends Extent
    ? Omit<E, "start" | "end"> & { readonly bytes: number }
    : never
  : never;

/** What is found on the way. */
interface Found {
  readonly createType: string;
  readonly extents: readonly Unplaced[];
  readonly descriptorOffset: number;
  readonly descriptorWindow: number;
  readonly readOnlyReason: string | undefined;
}

export async function openState(co: Coroutine<"none">, opening: OpeningNode): Promise<VmdkState> {
  const { node, environment } = opening;
  const file = await opening.openFileChild(co);
  const text = await graphRdlock(co, (reader) => readDescriptor(reader, file, 0));
  const found = isSparse(text)
    ? await openMonolithic(co, opening, file, text)
    : await openDescriptor(co, opening, file, text);
  const { descriptorOffset, descriptorWindow } = found;
  const identity = parseIdentity(
    await graphRdlock(co, (reader) => readIdentityText(reader, file, descriptorOffset, descriptorWindow)),
  );
  if (!identity) throw openFailed(file, "EINVAL");
  if (identity.parentFilename !== undefined) {
    node.backingFilename = identity.parentFilename;
    node.backingFormat = "vmdk";
  }
  const extents = placeExtents(found.extents);
  node.totalSectors = (extents.at(-1)?.end ?? 0) / SECTOR_SIZE;
  const state: VmdkState = {
    ...found,
    extents,
    node,
    environment,
    file,
    cid: identity.cid,
    parentCid: identity.parentCid,
    isParentChecked: false,
    isCidNew: false,
    turn: Promise.resolve(),
    lock: new Mutex(),
    unpacked: undefined,
  };
  stateOf.set(node, state);
  return state;
}

/** One after the other. */
function placeExtents(unplaced: readonly Unplaced[]): Extent[] {
  let start = 0;
  return unplaced.map(({ bytes, ...extent }) => {
    const end = start + bytes;
    const placed: Extent = { ...extent, start, end };
    start = end;
    return placed;
  });
}

function magicOf(text: string): number {
  return text.length < 4 ? 0 : Buffer.from(text.slice(0, 4), "latin1").readUInt32LE();
}

function isSparse(text: string): boolean {
  const magic = magicOf(text);
  return magic === Magic.Hosted || magic === Magic.Cowd;
}

/** One sparse extent that has its descriptor within it. */
async function openMonolithic(
  co: Coroutine<"none">,
  opening: OpeningNode,
  file: BlockChild,
  text: string,
): Promise<Found> {
  const opened = await openSparse(co, opening, file, text);
  // Wherever a header says that its descriptor is, identities are right behind the header.
  const place = { descriptorOffset: SECTOR_SIZE, descriptorWindow: DESCRIPTOR_BYTES };
  if (!opened.content) {
    const inner = await graphRdlock(co, (reader) => readDescriptor(reader, file, opened.descriptorOffset));
    return { ...(await openDescriptor(co, opening, file, inner)), ...place };
  }
  const extent = { ...opened.content, type: "", access: "RW" } as const;
  const createType = extent.isCompressed ? "streamOptimized" : "monolithicSparse";
  // What follows a shorter one is no part of it.
  const descriptorWindow = Math.min(DESCRIPTOR_BYTES, opened.descriptorBytes || DESCRIPTOR_BYTES);
  const { readOnlyReason } = opened;
  return { ...place, descriptorWindow, createType, extents: [extent], readOnlyReason };
}

/** @qemu vmdk_open_sparse */
function openSparse(
  co: Coroutine<"none">,
  { node, flags }: OpeningNode,
  file: BlockChild,
  text: string,
): Promise<OpenedSparse> {
  const isWritten = !node.readOnly && !flags.noIo;
  return graphRdlock(co, async (reader) => {
    switch (magicOf(text)) {
      case Magic.Hosted:
        return openHosted(reader, file, isWritten);
      case Magic.Cowd:
        return { content: await openCowd(reader, file), descriptorBytes: 0, readOnlyReason: undefined };
      default:
        throw new BlockError("EINVAL", "Image not in VMDK format");
    }
  });
}

/** @qemu vmdk_open_desc_file */
async function openDescriptor(
  co: Coroutine<"none">,
  opening: OpeningNode,
  file: BlockChild,
  text: string,
): Promise<Found> {
  const createType = parseCreateType(text);
  if (!CREATE_TYPES.includes(createType))
    throw new BlockError("ENOTSUP", `Unsupported image type '${createType}'`);
  const extents: Unplaced[] = [];
  let readOnlyReason: string | undefined;
  const { lines, problem } = parseExtents(text);
  for (const { filename } of lines)
    if (filename !== undefined) opening.nameReference({ kind: "extent", filename });
  for (const line of lines) {
    if (extents.length >= MAX_EXTENTS)
      throw new BlockError("EFBIG", `More than ${MAX_EXTENTS} extents are not supported`);
    const opened = await openExtent(co, opening, file, line, `extents.${extents.length}`);
    extents.push(opened.extent);
    readOnlyReason ??= opened.readOnlyReason;
  }
  if (problem) throw problem;
  const hasStreams = extents.some((extent) => extent.kind === "sparse" && extent.isCompressed);
  return {
    createType: hasStreams ? "streamOptimized" : createType,
    extents,
    descriptorOffset: 0,
    descriptorWindow: DESCRIPTOR_BYTES,
    readOnlyReason,
  };
}

interface OpenedExtent {
  readonly extent: Unplaced;
  readonly readOnlyReason?: string | undefined;
}

async function openExtent(
  co: Coroutine<"none">,
  opening: OpeningNode,
  file: BlockChild,
  line: ExtentLine,
  key: string,
): Promise<OpenedExtent> {
  const { access, type, filename } = line;
  const bytes = line.sectors * SECTOR_SIZE;
  if (filename === undefined || type === "ZERO") return { extent: { kind: "zero", access, type, bytes } };
  const isFlat = type === "FLAT" || type === "VMFS";
  const role: ChildRole = { data: true, implied: true, ...(!isFlat && { metadata: true }) };
  const path = extentPath(opening, file, filename);
  const child = await opening.openReference(co, key, role, "extent", path, true);
  // The gate had nothing opened in its place.
  if (child.node.driver.formatName === "null-co") return { extent: { kind: "zero", access, type, bytes } };
  if (isFlat)
    return {
      extent: { kind: "flat", access, type, bytes, file: child, hostOffset: line.offset * SECTOR_SIZE },
    };
  if (type === "SESPARSE") {
    opening.applyAutoReadOnly(new BlockError("EACCES", NO_SE_WRITES));
    const content = await graphRdlock(co, (reader) => openSeSparse(reader, child));
    return { extent: { ...content, access, type }, readOnlyReason: NO_SE_WRITES };
  }
  const text = await graphRdlock(co, (reader) => readDescriptor(reader, child, 0));
  const { content, readOnlyReason } = await openSparse(co, opening, child, text);
  // A descriptor within an extent of a descriptor could lead in a circle.
  if (!content) throw new BlockError("EINVAL", "Image not in VMDK format");
  return { extent: { ...content, access, type }, readOnlyReason };
}

/** What a relative name is relative to; a name is never taken for that of a protocol. */
function extentPath(opening: OpeningNode, file: BlockChild, filename: string): string {
  if (isAbsolute(filename)) return filename;
  const path = protocolPrefix(filename) === undefined ? filename : `./${filename}`;
  try {
    return resolveReference(opening.node, path);
  } catch (error) {
    throw BlockError.wrap(
      `Cannot use relative paths with VMDK descriptor file '${file.node.filename}'`,
      error,
    );
  }
}
