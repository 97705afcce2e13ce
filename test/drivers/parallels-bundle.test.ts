/** Bundles of Parallels: a description, and the images of a disk's parts and snapshots. */

import assert from "node:assert/strict";
import fs from "node:fs";
import path from "node:path";
import { after, describe, it } from "node:test";
import { BlockError } from "../../src/block/errors.ts";
import { open } from "../../src/index.ts";
import { openBackend } from "../support/graph.ts";
import { random } from "../support/random.ts";
import { tempDir } from "../support/temp.ts";
import { missing, mustRun } from "../support/tools.ts";

const root = tempDir({ after });
const MiB = 2 ** 20;
const BASE = "{5fbaabe3-6958-40ff-92a7-860e329aab41}";
const TOP = "{704718e1-2314-44c8-9087-d78ed36b0f4e}";
const NONE = "{00000000-0000-0000-0000-000000000000}";

interface Storage {
  readonly start: number;
  readonly end: number;
  readonly images: readonly (readonly [id: string, type: string, file: string])[];
}

function describeDisk(bytes: number, storages: readonly Storage[], snapshots = ""): string {
  const parts = storages.map(
    ({ start, end, images }) =>
      `<Storage><Start>${start}</Start><End>${end}</End><Blocksize>2048</Blocksize>${images
        .map(
          ([id, type, file]) => `<Image><GUID>${id}</GUID><Type>${type}</Type><File>${file}</File></Image>`,
        )
        .join("")}</Storage>`,
  );
  return (
    `<?xml version='1.0' encoding='UTF-8'?>\n<Parallels_disk_image Version="1.0">\n` +
    `<Disk_Parameters><Disk_size>${bytes / 512}</Disk_size><Cylinders>1</Cylinders><Padding>0</Padding></Disk_Parameters>\n` +
    `<StorageData>${parts.join("\n")}</StorageData>\n${snapshots}</Parallels_disk_image>\n`
  );
}

const SNAPSHOTS =
  `<Snapshots><TopGUID>${TOP}</TopGUID>` +
  `<Shot><GUID>${TOP}</GUID><ParentGUID>${BASE}</ParentGUID></Shot>` +
  `<Shot><GUID>${BASE}</GUID><ParentGUID>${NONE}</ParentGUID></Shot></Snapshots>`;

let made = 0;

/** A folder with the description, and what `fill` puts there. */
function bundle(text: string, fill: (directory: string) => void): string {
  const directory = path.join(root, `bundle${made++}.hdd`);
  fs.mkdirSync(directory);
  fs.writeFileSync(path.join(directory, "DiskDescriptor.xml"), text);
  fill(directory);
  return path.join(directory, "DiskDescriptor.xml");
}

function image(directory: string, name: string, bytes: number, ...commands: readonly string[]): void {
  const filename = path.join(directory, name);
  mustRun("qemu-img", ["create", "-q", "-f", "parallels", "-o", "cluster_size=64k", filename, String(bytes)]);
  if (commands.length === 0) return;
  mustRun("qemu-io", ["-f", "parallels", ...commands.flatMap((command) => ["-c", command]), filename]);
}

const SIZE = 2 * MiB;

function withSnapshot(): { readonly filename: string; readonly content: Buffer } {
  const images = [
    [BASE, "Compressed", "base.hds"],
    [TOP, "Compressed", "top &amp; last.hds"],
  ] as const;
  const text = describeDisk(SIZE, [{ start: 0, end: SIZE / 512, images }], SNAPSHOTS);
  const filename = bundle(text, (directory) => {
    image(directory, "base.hds", SIZE, "write -P 1 0 512k", "write -P 2 1M 128k");
    image(directory, "top & last.hds", SIZE, "write -P 3 64k 64k", "write -P 4 1536k 64k");
  });
  const content = Buffer.alloc(SIZE);
  content.fill(1, 0, MiB / 2).fill(2, MiB, MiB + MiB / 8);
  content.fill(3, MiB / 16, MiB / 8).fill(4, 1.5 * MiB, 1.5 * MiB + MiB / 16);
  return { filename, content };
}

describe("parallels bundles", { skip: missing("qemu-io") }, () => {
  it("are probed, and show the current snapshot over those below it", async () => {
    const { filename, content } = withSnapshot();
    await using disk = await open(filename);
    assert.equal(disk.node.driver.formatName, "parallels");
    assert.equal(Buffer.compare(await disk.read(0, SIZE), content), 0);
    const zero = await disk.blockStatus(MiB / 2, SIZE);
    assert.deepEqual([zero.zero, zero.bytes], [true, MiB / 2]);
  });

  it("are written to in the uppermost image", async () => {
    const { filename, content } = withSnapshot();
    const base = path.join(path.dirname(filename), "base.hds");
    const before = fs.readFileSync(base);
    const dice = random(1);
    {
      await using disk = await openBackend({ driver: "parallels", file: { driver: "file", filename } });
      for (let round = 0; round < 20; round++) {
        const data = dice.bytes(dice.between(1, 100_000));
        const offset = dice.below(SIZE - data.length);
        await disk.write(offset, data);
        content.set(data, offset);
      }
      assert.equal(Buffer.compare(await disk.read(0, SIZE), content), 0);
    }
    await using disk = await open(filename);
    assert.equal(Buffer.compare(await disk.read(0, SIZE), content), 0);
    assert.equal(Buffer.compare(fs.readFileSync(base), before), 0);
    mustRun("qemu-img", ["check", "-f", "parallels", path.join(path.dirname(filename), "top & last.hds")]);
  });

  it("have parts behind each other, plain ones too", async () => {
    const half = SIZE / 1024;
    const text = describeDisk(SIZE, [
      { start: half, end: 2 * half, images: [[BASE, "Plain", "plain.hds"]] },
      { start: 0, end: half, images: [[BASE, "Compressed", "first.hds"]] },
    ]);
    const filename = bundle(text, (directory) => {
      image(directory, "first.hds", SIZE / 2, "write -P 1 960k 64k");
      fs.writeFileSync(path.join(directory, "plain.hds"), Buffer.alloc(SIZE / 2, 2));
    });
    await using disk = await openBackend({ driver: "parallels", file: { driver: "file", filename } });
    await disk.write(MiB - 512, Buffer.alloc(1024, 9));
    const content = Buffer.alloc(SIZE)
      .fill(1, 960 * 1024, MiB)
      .fill(2, MiB)
      .fill(9, MiB - 512, MiB + 512);
    assert.equal(Buffer.compare(await disk.read(0, SIZE), content), 0);
  });

  it("are asked of the gate, each image by its name", async () => {
    const { filename } = withSnapshot();
    const asked: string[] = [];
    const gate = async (reference: { readonly filename: string }) => {
      asked.push(path.basename(reference.filename));
      throw new BlockError("EACCES", "not that");
    };
    const opening = openBackend(
      { driver: "parallels", file: { driver: "file", filename } },
      { environment: { gate } },
    );
    await assert.rejects(opening, /not that/);
    assert.deepEqual(asked, ["base.hds"]);
  });

  const whole = [{ start: 0, end: 16, images: [[BASE, "Plain", "x"]] }] as const;
  const LIES: Readonly<Record<string, string>> = {
    "there is no Disk_size": "<Parallels_disk_image>",
    "Start is no number": describeDisk(8192, whole).replace("<Start>0", "<Start>-1"),
    "its parts do not follow each other": describeDisk(8192, [{ ...whole[0], start: 1 }]),
    "its parts are shorter than the disk": describeDisk(8704, whole),
    "a part has no image": describeDisk(8192, [{ ...whole[0], images: [] }]),
    "an image has the type 'Other'": describeDisk(8192, whole).replace("Plain", "Other"),
    "a part lacks the image of a snapshot": describeDisk(8192, whole, SNAPSHOTS),
    "its snapshots go round in a circle": describeDisk(8192, whole, SNAPSHOTS.replace(NONE, TOP)),
    "the current snapshot is not among its snapshots": describeDisk(
      8192,
      whole,
      SNAPSHOTS.replace(`<TopGUID>${TOP}`, `<TopGUID>${NONE}`),
    ),
  };
  for (const [why, text] of Object.entries(LIES))
    it(`are refused: ${why}`, async () => {
      const filename = bundle(text, () => {});
      await assert.rejects(open(filename), { message: `Invalid Parallels disk descriptor: ${why}` });
    });
});
