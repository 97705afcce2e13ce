/**
 * New qcow2 images. Layout, as qemu-img's: header, refcount table, first refcount block, active L1 table. The header is
 * written last, so that what breaks off half-way is no image. What does not fit in there, and space to be set aside, comes
 * by growing an empty image through the driver.  @qemu qcow2_co_create
 */

import { BlockBackend } from "../../src/block/backend.ts";
import type { Coroutine } from "../../src/block/coroutine.ts";
import { createFile, emptyCreated, fillCreated } from "../../src/block/create.ts";
import type { CreateRequest } from "../../src/block/driver.ts";
import { BlockError } from "../../src/block/errors.ts";
import { openNode } from "../../src/block/open.ts";
import { DEFAULT_FLAGS } from "../../src/block/open-flags.ts";
import type { Options } from "../../src/block/options.ts";
import { MAX_LENGTH } from "../../src/block/units.ts";
import { type CreateOptions, checkCreateOptions, checkEncryption, type NewImage } from "./create-options.ts";
import type { Encrypt } from "./crypto-create.ts";
import { refcountAccess, setEntry } from "./entries.ts";
import { l1EntriesFor, serializeHeader } from "./header.ts";
import { Autoclear, Compatible, CryptMethod, Incompatible, MAX_L1_BYTES } from "./layout.ts";

export async function create(co: Coroutine<"none">, request: CreateRequest<CreateOptions>): Promise<void> {
  const { filename, protocolOptions, environment } = request;
  // All is checked before anything that is there is emptied.
  const encryptionFormat = checkEncryption(request.options);
  const image = checkCreateOptions(request.options);
  const layout = planLayout(image);
  const header = makeHeader(image, layout);
  const encrypt =
    encryptionFormat &&
    (await (await import("./crypto-create.ts")).planEncryption(encryptionFormat, request));
  await createFile(co, filename, protocolOptions, environment);
  try {
    await fillCreated(co, filename, environment, async (file) => {
      // The image is open already: its lock keeps it from being its own data file.
      if (image.dataFile !== undefined) {
        const size = isPreallocated(image) ? 0 : image.size;
        await createFile(co, image.dataFile, new Map([["size", size]]), environment, true);
      }
      await writeImage(file, image, layout, header);
    });
    if (layout.isPart) await growToSize(co, request, image);
    if (encrypt) await encryptLast(co, request, image, encrypt);
  } catch (error) {
    await emptyCreated(co, filename, environment);
    throw error;
  }
}

/** Header, refcount table, refcount block, and then the L1 table: one cluster each but for the last. */
const L1_CLUSTER = 3;

interface Layout {
  /** Virtual size in bytes. */
  readonly size: number;
  readonly l1Size: number;
  readonly usedClusters: number;
  /** The image is yet to be grown by the driver: by its data clusters, or by more refcount blocks. */
  readonly isPart: boolean;
}

function planLayout(image: NewImage): Layout {
  const { size, clusterSize, extendedL2, refcountBits } = image;
  const l1Size = l1EntriesFor(size, clusterSize, extendedL2);
  if (size > MAX_LENGTH || l1Size * 8 > MAX_L1_BYTES) throw new BlockError("EFBIG");
  const usedClusters = L1_CLUSTER + Math.ceil((l1Size * 8) / clusterSize);
  if (!isPreallocated(image) && usedClusters <= (clusterSize * 8) / refcountBits)
    return { size, l1Size, usedClusters, isPart: false };
  return { size: 0, l1Size: 0, usedClusters: L1_CLUSTER, isPart: true };
}

function makeHeader(image: NewImage, layout: Layout): Uint8Array {
  const { clusterSize, backingFile, backingFormat, dataFile } = image;
  try {
    return serializeHeader({
      version: image.version,
      clusterBits: image.clusterBits,
      size: layout.size,
      refcountBits: image.refcountBits,
      compressionType: image.compressionType,
      incompatibleFeatures:
        (dataFile === undefined ? 0n : Incompatible.DataFile) |
        (image.compressionType === "zlib" ? 0n : Incompatible.CompressionType) |
        (image.extendedL2 ? Incompatible.ExtendedL2 : 0n),
      compatibleFeatures: image.lazyRefcounts ? Compatible.LazyRefcounts : 0n,
      autoclearFeatures: image.dataFileRaw ? Autoclear.DataFileRaw : 0n,
      l1TableOffset: layout.l1Size === 0 ? 0 : L1_CLUSTER * clusterSize,
      l1Size: layout.l1Size,
      refcountTableOffset: clusterSize,
      refcountTableClusters: 1,
      snapshotsOffset: 0,
      nbSnapshots: 0,
      unknownHeader: new Uint8Array(0),
      unknownExtensions: [],
      backingFile,
      backingFormat,
      dataFileName: dataFile,
      bitmaps: undefined,
      cryptMethod: CryptMethod.None,
      cryptoHeader: undefined,
    });
  } catch (error) {
    if (backingFile === undefined) throw error;
    const format = backingFormat === undefined ? "" : ` with format '${backingFormat}'`;
    throw BlockError.wrap(`Could not assign backing file '${backingFile}'${format}`, error);
  }
}

/** The header comes last: until then the file is no image. */
async function writeImage(
  file: BlockBackend,
  { clusterSize, refcountBits }: NewImage,
  { l1Size, usedClusters }: Layout,
  header: Uint8Array,
): Promise<void> {
  const blockStart = 2 * clusterSize;
  const table = new DataView(new ArrayBuffer(clusterSize));
  setEntry(table, 0, blockStart, false);
  // No holes, as in QEMU: what the file takes up tells whether clusters are preallocated.
  await file.write(clusterSize, new Uint8Array(table.buffer));
  const refcounts = new DataView(new ArrayBuffer(clusterSize));
  const { set } = refcountAccess(Math.log2(refcountBits));
  for (let cluster = 0; cluster < usedClusters; cluster++) set(refcounts, cluster, 1);
  await file.write(blockStart, new Uint8Array(refcounts.buffer));
  await file.writeZeroes(L1_CLUSTER * clusterSize, l1Size * 8);
  const headerCluster = new Uint8Array(clusterSize);
  headerCluster.set(header);
  await file.write(0, headerCluster);
}

/** Whether clusters are allocated at once. A data file that is to stay raw has all of them from the start. */
function isPreallocated({ preallocation, dataFileRaw }: NewImage): boolean {
  return preallocation !== "off" || dataFileRaw;
}

async function growToSize(
  co: Coroutine<"none">,
  request: CreateRequest<CreateOptions>,
  image: NewImage,
): Promise<void> {
  const { size, preallocation } = image;
  const backend = await openImage(co, request, image);
  try {
    await backend.truncate(size, preallocation);
  } finally {
    await backend.close();
  }
}

/** Last, as qemu-img does: the LUKS header lies behind what else the image has. */
async function encryptLast(
  co: Coroutine<"none">,
  request: CreateRequest<CreateOptions>,
  image: NewImage,
  encrypt: Encrypt,
): Promise<void> {
  const backend = await openImage(co, request, image);
  try {
    await backend.run((reader, { node }) => encrypt(reader, node));
  } finally {
    await backend.close();
  }
}

async function openImage(
  co: Coroutine<"none">,
  { filename, environment }: CreateRequest<CreateOptions>,
  { dataFile }: NewImage,
): Promise<BlockBackend> {
  const options: Options = new Map([["driver", "qcow2"]]);
  if (dataFile !== undefined) options.set("data-file.filename", dataFile);
  const flags = { ...DEFAULT_FLAGS, readOnly: false, noBacking: true };
  return BlockBackend.forNode(co, await openNode(co, { filename, options, flags, environment }));
}
