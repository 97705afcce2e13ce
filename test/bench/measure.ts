/** One run of a command with the wall clock, CPU time and peak memory of that process alone. */

import { spawnSync } from "node:child_process";
import fs from "node:fs";
import path from "node:path";

/** What one run took. */
export interface Usage {
  readonly wallSeconds: number;
  /** User and system time together. */
  readonly cpuSeconds: number;
  readonly peakRssBytes: number;
}

export interface Run {
  readonly usage: Usage;
  readonly exitCode: number;
  readonly stdout: string;
  readonly stderr: string;
}

/** Numbers of system calls on Linux. */
const SYSTEM_CALLS: Readonly<Record<string, { readonly wait4: number; readonly clockGettime: number }>> = {
  x64: { wait4: 61, clockGettime: 228 },
  arm64: { wait4: 260, clockGettime: 113 },
  riscv64: { wait4: 260, clockGettime: 113 },
};

/*
 * Node can't tell what a child used, and a child's peak memory starts with what its parent had when it forked. So the
 * parent is a Perl, small and part of every Debian, without modules; `time` would do but for its resolution of 10 ms.
 * struct rusage: ru_utime and ru_stime as seconds and microseconds, ru_maxrss in KiB, each a long.
 */
const WRAPPER = `
my ($wait4, $clock_gettime, $report, $out, $err, @command) = @ARGV;
$_ += 0 for $wait4, $clock_gettime;
sub now {
  my $time = pack("l!2", 0, 0);
  syscall($clock_gettime, 1, $time) == 0 or die "clock_gettime: $!";
  my ($seconds, $nanoseconds) = unpack("l!2", $time);
  return $seconds + $nanoseconds / 1e9;
}
my $start = now();
my $pid = fork() // die "fork: $!";
if ($pid == 0) {
  open(STDIN, "<", "/dev/null"); open(STDOUT, ">", $out); open(STDERR, ">", $err);
  exec { $command[0] } @command or die "$command[0]: $!\\n";
}
my ($status, $usage) = (pack("i", 0), pack("l!18", (0) x 18));
syscall($wait4, $pid, $status, 0, $usage) == $pid or die "wait4: $!";
my $wall = now() - $start;
open(my $file, ">", $report); print $file join(" ", $wall, unpack("i", $status), unpack("l!5", $usage));
`;

/** Runs a command to its end; `scratch` is a directory for what it prints. */
export function measure(command: readonly string[], scratch: string): Run {
  const calls = SYSTEM_CALLS[process.arch];
  if (process.platform !== "linux" || !calls)
    throw new Error(`The benchmark measures on Linux on ${Object.keys(SYSTEM_CALLS).join(", ")} only`);
  const [report, out, err] = ["report", "stdout", "stderr"].map((name) => path.join(scratch, name)) as [
    string,
    string,
    string,
  ];
  // A list of certificates that Node 20 reads at each start: 40 ms that are not ours.
  const { NODE_EXTRA_CA_CERTS: _, ...env } = process.env;
  const args = ["-e", WRAPPER, String(calls.wait4), String(calls.clockGettime), report, out, err, ...command];
  const perl = spawnSync("perl", args, { env, encoding: "utf8" });
  if (perl.error || perl.status !== 0)
    throw new Error(`perl, which measures, failed: ${perl.error?.message ?? perl.stderr}`);
  const figures = fs.readFileSync(report, "utf8").split(" ").map(Number);
  const [wall = NaN, status = NaN, userS = NaN, userUs = NaN, sysS = NaN, sysUs = NaN, rssKib = NaN] =
    figures;
  return {
    usage: {
      wallSeconds: wall,
      cpuSeconds: userS + sysS + (userUs + sysUs) / 1e6,
      peakRssBytes: rssKib * 1024,
    },
    // As wait tells it: the signal in the low byte, else the exit code above it.
    exitCode: status % 256 === 0 ? status / 256 : 128 + (status % 128),
    stdout: fs.readFileSync(out, "utf8"),
    stderr: fs.readFileSync(err, "utf8"),
  };
}
