/** On-disk records as tables of fields in file order; type, size, offsets, reader and writer derive from the table. */

/** One field's codec. `bytes` is its width in the file. */
export interface Field<T> {
  readonly bytes: number;
  read(view: DataView, offset: number, littleEndian: boolean): T;
  write(view: DataView, offset: number, value: T, littleEndian: boolean): void;
}

export const u8: Field<number> = {
  bytes: 1,
  read: (view, offset) => view.getUint8(offset),
  write: (view, offset, value) => view.setUint8(offset, value),
};

export const u16: Field<number> = {
  bytes: 2,
  read: (view, offset, le) => view.getUint16(offset, le),
  write: (view, offset, value, le) => view.setUint16(offset, value, le),
};

export const u32: Field<number> = {
  bytes: 4,
  read: (view, offset, le) => view.getUint32(offset, le),
  write: (view, offset, value, le) => view.setUint32(offset, value, le),
};

/** As a number: over 2^53 the low bits are lost, but such a value is over every bound that a reader checks. */
export const u64: Field<number> = {
  bytes: 8,
  read(view, offset, le) {
    const first = view.getUint32(offset, le);
    const second = view.getUint32(offset + 4, le);
    return le ? second * 2 ** 32 + first : first * 2 ** 32 + second;
  },
  write(view, offset, value, le) {
    const high = Math.floor(value / 2 ** 32);
    const low = value - high * 2 ** 32;
    view.setUint32(offset, le ? low : high, le);
    view.setUint32(offset + 4, le ? high : low, le);
  },
};

/** For feature masks, where every bit counts. */
export const mask64: Field<bigint> = {
  bytes: 8,
  read: (view, offset, le) => view.getBigUint64(offset, le),
  write: (view, offset, value, le) => view.setBigUint64(offset, value, le),
};

/** `length` raw bytes; a shorter value is padded with zeroes. */
export function bytes(length: number): Field<Uint8Array> {
  return {
    bytes: length,
    read: (view, offset) => new Uint8Array(view.buffer, view.byteOffset + offset, length).slice(),
    write(view, offset, value) {
      const target = new Uint8Array(view.buffer, view.byteOffset + offset, length);
      target.fill(0);
      target.set(value.subarray(0, length));
    },
  };
}

type FieldTable = Readonly<Record<string, Field<unknown>>>;
type RecordOf<T extends FieldTable> = { -readonly [K in keyof T]: T[K] extends Field<infer V> ? V : never };

export interface Layout<T extends FieldTable> {
  /** Bytes that one record takes in the file. */
  readonly size: number;
  /** Byte offset of each field from the record's start. */
  readonly offsetOf: { readonly [K in keyof T]: number };
  /** `buffer` must hold `size` bytes from `offset`: the caller has bounded it. */
  read(buffer: Uint8Array, offset?: number): RecordOf<T>;
  write(record: RecordOf<T>, buffer?: Uint8Array, offset?: number): Uint8Array;
}

/** The record type of a layout: `Infer<typeof Header>`. */
export type Infer<L> = L extends Layout<infer T> ? RecordOf<T> : never;

/** Fields follow each other with no padding; qcow2, vhd and qed are big-endian, vhdx and vdi little-endian. */
export function layout<T extends FieldTable>(endian: "big" | "little", fields: T): Layout<T> {
  const littleEndian = endian === "little";
  const offsetOf: Record<string, number> = {};
  let size = 0;
  for (const [name, field] of Object.entries(fields)) {
    offsetOf[name] = size;
    size += field.bytes;
  }
  const entries = Object.entries(fields);
  return {
    size,
    offsetOf: offsetOf as { [K in keyof T]: number },
    read(buffer, offset = 0) {
      const view = new DataView(buffer.buffer, buffer.byteOffset + offset, size);
      const record: Record<string, unknown> = {};
      for (const [name, field] of entries)
        record[name] = field.read(view, offsetOf[name] as number, littleEndian);
      return record as RecordOf<T>;
    },
    write(record, buffer = new Uint8Array(size), offset = 0) {
      const view = new DataView(buffer.buffer, buffer.byteOffset + offset, size);
      const values: Readonly<Record<string, unknown>> = record;
      for (const [name, field] of entries)
        field.write(view, offsetOf[name] as number, values[name], littleEndian);
      return buffer;
    },
  };
}
