/**
 * Bundles of Parallels: a description in XML (DiskDescriptor.xml) names the images that a disk is made of, one or more
 * parts of it behind each other, each with an image for each snapshot. QEMU reads no such thing. Source: what Parallels
 * and Virtuozzo's ploop write, as the man page ploop-userspace describes it.
 *
 * The images are read by this driver itself, over one another; what is written goes into the uppermost.
 */

import type { BlockChild } from "../../src/block/child.ts";
import { type Coroutine, graphRdlock } from "../../src/block/coroutine.ts";
import type { NodeOps } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { combinePath } from "../../src/block/filename.ts";
import { type IoVector, iovLength, iovSlice } from "../../src/block/iov.ts";
import type { OpeningNode } from "../../src/block/open.ts";
import { MAX_LENGTH, MiB, SECTOR_SIZE } from "../../src/block/units.ts";
import {
  type ImageSettings,
  openImage,
  type options,
  pread,
  pwrite,
  type ReadBelow,
  runStatus,
} from "./image.ts";
import { endWriting, findRun, type Run, type State } from "./state.ts";

/** A description is read whole. */
const MAX_DESCRIPTOR_BYTES = MiB;
const MAX_IMAGES = 1000;

type Opening = OpeningNode<typeof options>;

/** One image of a part. */
interface Layer {
  readonly file: BlockChild;
  /** Undefined: a plain file. */
  readonly state: State | undefined;
  readonly read: ReadBelow;
  readonly find: (co: Coroutine<"read">, offset: number, bytes: number) => Promise<Run>;
}

/** A range of the disk, in bytes, and its images: the uppermost first. */
interface Part {
  readonly start: number;
  readonly end: number;
  readonly layers: readonly Layer[];
}

export async function openBundle(
  co: Coroutine<"none">,
  opening: Opening,
  descriptor: BlockChild,
): Promise<NodeOps> {
  const { node } = opening;
  const text = await graphRdlock(co, (reader) => readText(reader, descriptor));
  const described = parseDescriptor(text);
  node.totalSectors = described.sectors;
  const images = described.storages.flatMap(({ images: all }) => all);
  for (const { filename, isPlain } of images)
    opening.nameReference({ kind: "extent", filename, format: isPlain ? "raw" : "parallels" });
  const parts: Part[] = [];
  try {
    for (const [number, storage] of described.storages.entries())
      parts.push(await openPart(co, opening, descriptor.node.exactFilename, number, storage));
  } catch (error) {
    // Those that are open already must not stay marked as in use.
    await closeParts(co, node.readOnly, parts);
    throw error;
  }
  return bundleOps(node.readOnly, parts);
}

function bundleOps(readOnly: boolean, parts: readonly Part[]): NodeOps {
  const states = topStates(parts);
  return {
    pread: (co, offset, iov) =>
      eachPart(parts, offset, iov, (layer, inPart, piece) => layer.read(co, inPart, piece)),
    pwrite: (co, offset, iov) =>
      eachPart(parts, offset, iov, (layer, inPart, piece) =>
        layer.state ? pwrite(co, layer.state, inPart, piece) : layer.file.pwrite(co, inPart, piece),
      ),
    async blockStatus(co, _wantZero, offset, bytes) {
      const part = partAt(parts, offset);
      let left = Math.min(bytes, part.end - offset);
      for (const layer of part.layers) {
        const run = await layer.find(co, offset - part.start, left);
        if (run.hostOffset !== undefined) return runStatus(layer, run);
        left = run.bytes;
      }
      return { bytes: left, data: false, zero: true, allocated: false };
    },
    async flushToOs(co) {
      for (const { bat } of states) await bat.write(co);
    },
    limits: () => ({ requestAlignment: SECTOR_SIZE }),
    close: (co) => closeParts(co, readOnly, parts),
  };
}

const topStates = (parts: readonly Part[]) =>
  parts.flatMap(({ layers }) => (layers[0]?.state ? [layers[0].state] : []));

async function closeParts(co: Coroutine<"none">, readOnly: boolean, parts: readonly Part[]): Promise<void> {
  if (readOnly) return;
  for (const state of topStates(parts)) await graphRdlock(co, (reader) => endWriting(reader, state));
}

async function eachPart(
  parts: readonly Part[],
  offset: number,
  iov: IoVector,
  visit: (top: Layer, inPart: number, piece: IoVector) => Promise<void>,
): Promise<void> {
  const bytes = iovLength(iov);
  for (let done = 0; done < bytes; ) {
    const { start, end, layers } = partAt(parts, offset + done);
    const piece = Math.min(end - offset - done, bytes - done);
    await visit(layers[0] as Layer, offset + done - start, iovSlice(iov, done, done + piece));
    done += piece;
  }
}

function partAt(parts: readonly Part[], offset: number): Part {
  const part = parts.find(({ end }) => offset < end);
  if (!part) throw new BlockError("EIO");
  return part;
}

async function openPart(
  co: Coroutine<"none">,
  opening: Opening,
  base: string,
  number: number,
  { start, end, images }: Storage,
): Promise<Part> {
  const layers: Layer[] = [];
  // The lowest first: each shows where the one above it has nothing.
  for (const [index, { filename, isPlain }] of [...images.entries()].reverse()) {
    const role = index === 0 ? { data: true, metadata: true } : { cow: true };
    const key = `storage.${number}.${index}`;
    const file = await opening.openReference(co, key, role, "extent", combinePath(base, filename));
    layers.unshift(
      await openLayer(co, opening, { file, isPlain, isTop: index === 0, below: layers[0]?.read }),
    );
  }
  return { start: start * SECTOR_SIZE, end: end * SECTOR_SIZE, layers };
}

async function openLayer(
  co: Coroutine<"none">,
  { node, options: given, flags, environment }: Opening,
  image: { file: BlockChild; isPlain: boolean; isTop: boolean; below: ReadBelow | undefined },
): Promise<Layer> {
  const { file, isPlain, isTop, below } = image;
  if (isPlain)
    return {
      file,
      state: undefined,
      read: (reader, offset, iov) => file.pread(reader, offset, iov),
      find: async (_, offset, bytes) => ({ bytes, hostOffset: offset }),
    };
  const isWritable = isTop && !node.readOnly;
  const settings: ImageSettings = {
    node,
    file,
    options: given,
    flags,
    environment,
    isPart: true,
    isWritable,
    below: () => below,
  };
  const state = await graphRdlock(co, (reader) => openImage(reader, settings));
  return {
    file,
    state,
    read: (reader, offset, iov) => pread(reader, state, offset, iov),
    find: (reader, offset, bytes) => findRun(reader, state, offset, bytes),
  };
}

interface Image {
  readonly id: string;
  readonly filename: string;
  readonly isPlain: boolean;
}

/** A part of the disk, in sectors; its images in the order of their snapshots, the current one first. */
interface Storage {
  readonly start: number;
  readonly end: number;
  readonly images: readonly Image[];
}

async function readText(co: Coroutine<"read">, file: BlockChild): Promise<string> {
  const bytes = await file.getLength(co);
  if (bytes > MAX_DESCRIPTOR_BYTES) throw invalid("it is too long");
  return Buffer.from(await file.preadBytes(co, 0, bytes)).toString("utf8");
}

function invalid(why: string): BlockError {
  return new BlockError("EINVAL", `Invalid Parallels disk descriptor: ${why}`);
}

function parseDescriptor(text: string): { readonly sectors: number; readonly storages: readonly Storage[] } {
  const sectors = numberIn(text, "Disk_size");
  if (sectors > MAX_LENGTH / SECTOR_SIZE) throw new BlockError("EFBIG");
  const chain = snapshotChain(text);
  const storages = elements(text, "Storage").map((storage) => parseStorage(storage, chain));
  storages.sort((a, b) => a.start - b.start);
  let end = 0;
  for (const storage of storages) {
    if (storage.start !== end || storage.end <= end) throw invalid("its parts do not follow each other");
    end = storage.end;
  }
  if (end < sectors) throw invalid("its parts are shorter than the disk");
  if (storages.reduce((count, { images }) => count + images.length, 0) > MAX_IMAGES)
    throw invalid("it has too many images");
  return { sectors, storages };
}

function parseStorage(text: string, chain: readonly string[] | undefined): Storage {
  const all = elements(text, "Image").map((image): Image => {
    const type = textIn(image, "Type");
    if (type !== "Compressed" && type !== "Plain") throw invalid(`an image has the type '${type}'`);
    return {
      id: textIn(image, "GUID").toLowerCase(),
      filename: textIn(image, "File"),
      isPlain: type === "Plain",
    };
  });
  const images = chain?.flatMap((id) => all.filter((image) => image.id === id)) ?? all;
  if (images.length === 0) throw invalid("a part has no image");
  if (!chain && images.length > 1) throw invalid("it does not say which image is the current one");
  if (chain && images.length !== chain.length) throw invalid("a part lacks the image of a snapshot");
  return { start: numberIn(text, "Start"), end: numberIn(text, "End"), images };
}

/** Ids from the current image down to the first; undefined: there are no snapshots. */
function snapshotChain(text: string): readonly string[] | undefined {
  const [snapshots] = elements(text, "Snapshots");
  if (snapshots === undefined) return undefined;
  const parents = new Map<string, string>();
  for (const shot of elements(snapshots, "Shot"))
    parents.set(textIn(shot, "GUID").toLowerCase(), textIn(shot, "ParentGUID").toLowerCase());
  if (parents.size === 0) return undefined;
  const [top] = elements(snapshots, "TopGUID");
  // Without a word, it is the one that no other has as its parent.
  const leaves = [...parents.keys()].filter((id) => ![...parents.values()].includes(id));
  let id = top === undefined ? leaves[0] : unescape(top).toLowerCase();
  if (id === undefined || (top === undefined && leaves.length > 1))
    throw invalid("it does not say which snapshot is the current one");
  const chain: string[] = [];
  for (let parent = parents.get(id); parent !== undefined; parent = parents.get(id)) {
    if (chain.includes(id)) throw invalid("its snapshots go round in a circle");
    chain.push(id);
    id = parent;
  }
  if (chain.length === 0) throw invalid("the current snapshot is not among its snapshots");
  return chain;
}

/** What stands in each element of that name. */
function elements(text: string, name: string): readonly string[] {
  const found: string[] = [];
  for (const [, content] of text.matchAll(new RegExp(`<${name}(?:\\s[^>]*)?>([^]*?)</${name}>`, "g")))
    found.push((content as string).trim());
  return found;
}

function textIn(text: string, name: string): string {
  const [content] = elements(text, name);
  if (content === undefined) throw invalid(`there is no ${name}`);
  return unescape(content);
}

function numberIn(text: string, name: string): number {
  const number = textIn(text, name);
  if (!/^\d{1,16}$/.test(number)) throw invalid(`${name} is no number`);
  return Number(number);
}

const ENTITIES: Readonly<Record<string, string>> = { lt: "<", gt: ">", amp: "&", quot: '"', apos: "'" };

function unescape(text: string): string {
  return text.replaceAll(/&(lt|gt|amp|quot|apos);/g, (_, name: string) => ENTITIES[name] as string);
}
