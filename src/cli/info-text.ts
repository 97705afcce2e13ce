/** An image's description in qemu-img's two forms.  @qemu bdrv_image_info_dump */

import type { InfoValue, SnapshotInfo } from "../block/driver.ts";
import type { ImageInfo } from "../jobs/info.ts";
import { humanSize, type JsonValue } from "./format.ts";

export function humanInfo(info: ImageInfo): string {
  const { allocatedBytes, backingFilename, fullBackingFilename: full } = info;
  const lines = [
    `image: ${info.filename}`,
    `file format: ${info.format}`,
    `virtual size: ${humanSize(info.virtualBytes)} (${info.virtualBytes} bytes)`,
    `disk size: ${allocatedBytes === undefined ? "unavailable" : humanSize(allocatedBytes)}`,
  ];
  if (info.encrypted) lines.push("encrypted: yes");
  if (info.clusterBytes !== undefined) lines.push(`cluster_size: ${info.clusterBytes}`);
  if (info.dirty) lines.push("cleanly shut down: no");
  if (backingFilename !== undefined) {
    let note = "";
    if (full === undefined) note = " (cannot determine actual path)";
    else if (full !== backingFilename) note = ` (actual path: ${full})`;
    lines.push(`backing file: ${backingFilename}${note}`);
  }
  if (info.backingFormat !== undefined) lines.push(`backing file format: ${info.backingFormat}`);
  if (info.snapshots.length > 0) lines.push("Snapshot list:", ...snapshotTable(info.snapshots));
  if (info.specific && Object.keys(info.specific.data).length > 0)
    lines.push("Format specific information:", ...humanMembers(info.specific.data, 1));
  return `${lines.join("\n")}\n`;
}

/** A row a snapshot, under a head.  @qemu bdrv_snapshot_dump */
export function snapshotTable(snapshots: readonly SnapshotInfo[]): string[] {
  const rows = snapshots.map((snapshot) =>
    tableRow(
      snapshot.id,
      snapshot.name,
      humanSize(snapshot.vmStateSize),
      localDate(snapshot.dateSec),
      clock(snapshot.vmClockNsec),
      snapshot.icount === undefined ? "" : String(snapshot.icount),
    ),
  );
  return [tableRow("ID", "TAG", "VM SIZE", "DATE", "VM CLOCK", "ICOUNT"), ...rows];
}

function tableRow(
  id: string,
  tag: string,
  size: string,
  date: string,
  vmClock: string,
  icount: string,
): string {
  const left = `${padBytes(id, 9)} ${padBytes(tag, 16)} `;
  return `${left}${size.padStart(8)}${date.padStart(20)}${vmClock.padStart(13)}${icount.padStart(11)}`;
}

/** As the C library counts: in bytes, not in characters. */
function padBytes(text: string, width: number): string {
  return text + " ".repeat(Math.max(width - Buffer.byteLength(text), 0));
}

const two = (value: number) => String(value).padStart(2, "0");

function localDate(seconds: number): string {
  const date = new Date(seconds * 1000);
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
}

/** Hours, minutes, seconds and milliseconds that the guest had run. */
function clock(nanoseconds: bigint): string {
  const milliseconds = Number(nanoseconds / 1_000_000n);
  const seconds = Math.floor(milliseconds / 1000);
  const parts = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60].map(two);
  return `${parts.join(":")}.${String(milliseconds % 1000).padStart(3, "0")}`;
}

/** "name: value" lines, what is nested four columns further in; hyphens in names become spaces. */
export function humanMembers(members: { readonly [key: string]: InfoValue }, depth: number): string[] {
  return Object.entries(members).flatMap(([key, value]) =>
    humanMember(key.replaceAll("-", " "), value, depth),
  );
}

function humanMember(name: string, value: InfoValue, depth: number): string[] {
  const indent = "    ".repeat(depth);
  if (value === null || typeof value !== "object") return [`${indent}${name}: ${value}`];
  const inside = Array.isArray(value)
    ? (value as readonly InfoValue[]).flatMap((item, index) => humanMember(`[${index}]`, item, depth + 1))
    : humanMembers(value as { readonly [key: string]: InfoValue }, depth + 1);
  return [`${indent}${name}:`, ...inside];
}

/** The order of the members is that of qemu-img. */
export function jsonInfo(info: ImageInfo): { readonly [key: string]: JsonValue | undefined } {
  return {
    "backing-filename-format": info.backingFormat,
    snapshots: info.snapshots.length === 0 ? undefined : info.snapshots.map(jsonSnapshot),
    "virtual-size": info.virtualBytes,
    filename: info.filename,
    "cluster-size": info.clusterBytes,
    format: info.format,
    "actual-size": info.allocatedBytes,
    "format-specific": info.specific && { type: info.specific.type, data: info.specific.data },
    "full-backing-filename": info.fullBackingFilename,
    "backing-filename": info.backingFilename,
    encrypted: info.encrypted || undefined,
    "dirty-flag": info.dirty,
  };
}

function jsonSnapshot(snapshot: SnapshotInfo): { readonly [key: string]: JsonValue | undefined } {
  return {
    icount: snapshot.icount,
    "vm-clock-nsec": snapshot.vmClockNsec % 1_000_000_000n,
    name: snapshot.name,
    "date-sec": snapshot.dateSec,
    "date-nsec": snapshot.dateNsec,
    "vm-clock-sec": snapshot.vmClockNsec / 1_000_000_000n,
    id: snapshot.id,
    "vm-state-size": snapshot.vmStateSize,
  };
}
