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
