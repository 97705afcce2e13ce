/** Formats are known by bytes that stand at a place of their own. */

/** Latin-1 text at an offset in bytes. */
export interface Signature {
  readonly offset?: number;
  readonly text: string;
}

/** Surer than the name of a file, and than raw. */
const BY_SIGNATURE = 100;

/** A driver's `probe`: any of the signatures will do. */
export function bySignature(...signatures: readonly Signature[]): (head: Uint8Array) => number {
  return (head) => {
    const bytes = Buffer.from(head.buffer, head.byteOffset, head.length);
    const has = ({ offset = 0, text }: Signature) =>
      bytes.toString("latin1", offset, offset + text.length) === text;
    return signatures.some(has) ? BY_SIGNATURE : 0;
  };
}

/** A text in a field of fixed length: it ends at the first zero byte. */
export function cString(field: Uint8Array): string {
  const end = field.indexOf(0);
  return Buffer.from(end < 0 ? field : field.subarray(0, end)).toString("latin1");
}

const BOCHS_VERSIONS: readonly number[] = [0x00010000, 0x00020000];

/** @qemu bochs_probe */
export function isBochs(head: Uint8Array): number {
  if (head.length < 512) return 0;
  const isNamed =
    cString(head.subarray(0, 32)) === "Bochs Virtual HD Image" &&
    cString(head.subarray(32, 48)) === "Redolog" &&
    cString(head.subarray(48, 64)) === "Growing";
  const version = new DataView(head.buffer, head.byteOffset).getUint32(64, true);
  return isNamed && BOCHS_VERSIONS.includes(version) ? BY_SIGNATURE : 0;
}

const CLOOP_SCRIPT = "#!/bin/sh\n#V2.0 Format\nmodprobe cloop file=$0 && mount -r -t iso9660 /dev/cloop $1\n";

/** Only its script tells it.  @qemu cloop_probe */
export function isCloop(head: Uint8Array): number {
  return bySignature({ text: CLOOP_SCRIPT })(head) > 0 ? 2 : 0;
}

const QCOW_MAGIC = 0x514649fb;

/** Of version 1 only its magic is the same.  @qemu qcow2_probe */
export function isQcow2(head: Uint8Array): number {
  if (head.length < 8) return 0;
  const view = new DataView(head.buffer, head.byteOffset, head.length);
  return view.getUint32(0) === QCOW_MAGIC && view.getUint32(4) >= 2 ? BY_SIGNATURE : 0;
}

/** Both magics, of the one version that there is. */
export function isParallels(head: Uint8Array): boolean {
  if (head.length < 20) return false;
  const magic = Buffer.from(head.subarray(0, 16)).toString("latin1");
  const version = new DataView(head.buffer, head.byteOffset).getUint32(16, true);
  return (magic === "WithoutFreeSpace" || magic === "WithouFreSpacExt") && version === 2;
}

/** A description in XML of a disk that lies in several images. */
export function isBundle(head: Uint8Array): boolean {
  const text = Buffer.from(head).toString("latin1");
  return /^(\xef\xbb\xbf)?(<\?xml[^>]*\?>)?\s*<Parallels_disk_image/.test(text);
}

/** QEMU takes such a description for raw.  @qemu parallels_probe */
export function probeParallels(head: Uint8Array): number {
  return isParallels(head) || isBundle(head) ? BY_SIGNATURE : 0;
}

/** By magic, or by the first line of a descriptor that is no comment.  @qemu vmdk_probe */
export function isVmdk(head: Uint8Array): number {
  const text = Buffer.from(head.buffer, head.byteOffset, head.length).toString("latin1");
  return /^(KDMV|COWD|(#[^\n]*\n| +\r?\n)*version=[123]\r?\n)/.test(text) ? BY_SIGNATURE : 0;
}

/** The trailer of a disk image of macOS, whatever the file's name: QEMU takes such a file for raw. */
export function endsAsDmg(tail: Uint8Array): number {
  return bySignature({ text: "koly\0\0\0\x04\0\0\x02\0" })(tail);
}

/** A dmg has its signature at its end, so its name tells.  @qemu dmg_probe */
export function probeDmg(head: Uint8Array, filename: string): number {
  return head.length > 0 && filename.endsWith(".dmg") && filename.length > 4 ? 2 : 0;
}

/**
 * The footer of a fixed VHD, which has nothing at its start. It must say what the file is, by both rules: the guest of a
 * raw image may have written it.
 */
export function isFixedVhd(tail: Uint8Array, fileBytes: number): number {
  if (bySignature({ text: "conectix" })(tail) === 0) return 0;
  const view = new DataView(tail.buffer, tail.byteOffset, tail.length);
  const diskBytes = fileBytes - tail.length;
  const geometryBytes = view.getUint16(56) * view.getUint8(58) * view.getUint8(59) * 512;
  let sum = view.getUint32(64);
  for (const [at, byte] of tail.entries()) if (at < 64 || at >= 68) sum += byte;
  const isWhole = sum === 0xffffffff && view.getUint32(60) === 2;
  const isMax = view.getUint32(56) === 0xffff10ff;
  const isSize = Number(view.getBigUint64(48)) === diskBytes && (isMax || geometryBytes <= diskBytes);
  return isWhole && isSize ? BY_SIGNATURE : 0;
}
