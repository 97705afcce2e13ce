/** CRC-32C (Castagnoli), reflected, as RFC 3720 has it: the checksum of all of VHDX's records. */

/** Four tables, so that four bytes are taken at once. */
const TABLES = makeTables();

function makeTables(): readonly Uint32Array[] {
  const tables = Array.from({ length: 4 }, () => new Uint32Array(256));
  const [first] = tables as [Uint32Array];
  for (let index = 0; index < 256; index++) {
    let crc = index;
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
    first[index] = crc;
  }
  for (let n = 1; n < 4; n++) {
    const [before, table] = [tables[n - 1], tables[n]] as [Uint32Array, Uint32Array];
    for (let index = 0; index < 256; index++) {
      const crc = before[index] as number;
      table[index] = (crc >>> 8) ^ (first[crc & 0xff] as number);
    }
  }
  return tables;
}

/** Goes on with `data` where `crc`, the checksum of what stands before it, ends. */
export function crc32c(data: Uint8Array, crc = 0): number {
  const [t0, t1, t2, t3] = TABLES as [Uint32Array, Uint32Array, Uint32Array, Uint32Array];
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  let rest = ~crc;
  let at = 0;
  for (; at + 4 <= data.length; at += 4) {
    rest ^= view.getInt32(at, true);
    rest =
      (t3[rest & 0xff] as number) ^
      (t2[(rest >>> 8) & 0xff] as number) ^
      (t1[(rest >>> 16) & 0xff] as number) ^
      (t0[rest >>> 24] as number);
  }
  for (; at < data.length; at++) rest = (rest >>> 8) ^ (t0[(rest ^ (data[at] as number)) & 0xff] as number);
  return ~rest >>> 0;
}
