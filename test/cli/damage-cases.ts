/** What is damaged, by structure: lines for `damage`. */

/** References to clusters and their refcounts, L1 and L2 entries. */
export const tableCases = lines(`
plain
plain rc[5]=2
plain rc[5]=0
plain rc[5]=3 rc[6]=0 rc[7]=5
plain rc[0]=0
plain rc[0]=2
plain rc[1]=0
plain rc[1]=7
plain rc[2]=2
plain rc[2]=0
plain rc[3]=2 rc[4]=2
plain rc[3]=0
plain rc[4]=0
plain rc[20]=1
plain rc[20]=9 rc[21]=1 rc[5]=2
plain rc[2000]=1
plain rc[9]=65535
plain rc[5]=2 l2[1]=6K+C
plain l2[0]=5K
plain l2[0]=5K l2[1]=6K
plain l1[0]=L2
plain l1[0]=L2 l2[0]=5K
plain l1[0]=L2 rc[5]=2
plain l1[0]=0
plain l1[0]=C
plain l1[0]=L2+C+1
plain l1[0]=L2+C+512
plain l1[0]=L2+512
plain l1[0]=L2+C+0x0100000000000000
plain l1[0]=END+C
plain l1[0]=END+C+1K
plain l1[0]=C+0x40000000
plain l1[0]=C+0x00fffffffffff000
plain l1[0]=L1+C
plain l1[0]=RT+C
plain l1[0]=RB+C
plain l1[0]=C+5K
plain l1[1]=L2
plain l1[1]=L2+C
plain l1[2]=L2+C l1[3]=L2+C
plain l1[1]=0xffffffffffffffff
plain l1[1]=Z+L2
plain l2[0]=0
plain l2[0]=C
plain l2[0]=1
plain l2[0]=C+1
plain l2[0]=C+5K+1
plain l2[0]=5K+1
plain l2[0]=C+5K+2
plain l2[0]=C+5K+0x100
plain l2[0]=C+5K+512
plain l2[0]=5K+512
plain l2[0]=C+5K+513
plain l2[0]=5K+513
plain l2[0]=5K+513 l2[1]=6K+1025
plain l2[0]=5K+513 rc[6]=4
plain l2[0]=5K+513 l2[5]=C+5K+2 rc[6]=4
plain l2[0]=C+5K+0x2000000000000000
plain l2[0]=0x3f00000000000000
plain l2[0]=0xffffffffffffffff
plain l2[0]=0x8000000000000002
plain l2[0]=C+END
plain l2[0]=C+END+1K
plain l2[0]=C+END+2K+1
plain l2[0]=C+0x00fffffffffff000
plain l2[0]=C+6K
plain l2[0]=6K
plain l2[0]=C+6K l2[1]=6K
plain l2[0]=6K l2[1]=6K
plain l2[0]=6K l2[1]=6K rc[6]=2
plain l2[0]=6K l2[1]=6K rc[6]=2 rc[5]=0
plain l2[0]=C+L1
plain l2[0]=C+L2
plain l2[0]=C+RT
plain l2[0]=C+RB
plain l2[0]=L1
plain l2[0]=L2
plain l2[0]=RT
plain l2[0]=RB
plain l2[64]=C+Z+11K
plain l2[64]=Z+0xb000
plain l2[64]=Z+END
plain l2[64]=Z+END+8K
plain l2[64]=Z+0x3c00000000000000+0xb000
plain l2[64]=Z+0x3ffffffffffff000
plain l2[64]=0xffffffffffffffff
plain l2[64]=Z
plain l2[64]=Z+L2
plain l2[64]=0 l2[65]=0
plain l2[32]=0
plain l2[48]=0xb000
plain l2[48]=C+0xb001
plain l2[48]=C+0xb201
plain @36:4=5
plain @36:4=1000
plain @36:4=0
plain @40:8=L2
plain @40:8=END
plain @40:8=END+64K
plain @40:8=RT
plain @40:8=0
plain @24:8=0x400000 rc[5]=2
plain cut=5K
plain cut=4K
plain cut=12K
plain cut=13K+1
plain cut=40K
plain cut=4000K
plain cut=9K+100
plain cut=2K+100
plain cut=3K
plain cut=1K
plain cut=600
snap cut=14K
snap cut=5K
ext cut=3K
ext cut=2K+5
bitmaps cut=5K
bitmaps cut=6K+7
bitmaps cut=2K
snap
snap rc[5]=1
snap rc[6]=1
snap rc[6]=0
snap rc[6]=9
snap l1[0]=0
snap l2[0]=0
snap l2[1]=0
snap s1[0]=0
snap s1[0]=S2+1
snap s1[0]=S2+512
snap s1[0]=END+8K
snap s1[0]=L2
snap s1[0]=C+S2
snap s1[1]=S2
snap s2[0]=0
snap s2[0]=C+5K
snap s2[0]=5K+512
snap s2[0]=5K+513
snap s2[2]=5K+2
snap s2[3]=END+9K
snap s2[64]=Z+C+0xb000
snap s2[0]=5K+513 l2[1]=513
tiny
tiny rc[5]=0
tiny rc[5]=2 rc[7]=9
tiny rc[300]=2
tiny rc[299]=0
tiny rt[1]=0
tiny rt[2]=0
tiny rt[0]=0
tiny rt[1]=RB
tiny rt[3]=RB
tiny rt[3]=END
tiny rt[3]=END+1
tiny rt[3]=END+512
tiny rt[3]=END+513
tiny rt[3]=END+100K
tiny rt[1]=0xffffffffffffffff
tiny rt[0]=L1
tiny l1[0]=0
tiny l1[3]=L2
tiny @48:8=1K+512
tiny @56:4=2
tiny @56:4=9
narrow
narrow l2[0]=C+5K l2[1]=C+5K
narrow l2[0]=C+5K l2[1]=C+5K l2[2]=C+5K
narrow l2[0]=6K l2[1]=6K
narrow l2[32]=Z+5K
wide
wide @8192:8=2 @8200:8=0
wide @8232:8=0xffffffffffffffff
wide @8240:8=0x20000000000000
wide @8192:8=0
old
old rc[5]=3
old rc[5]=0
old l2[0]=1
old l2[0]=5K+1
old l2[0]=5K+513
old l2[0]=C+5K+512
old @40:8=END+8K
empty
empty rc[3]=2
empty rc[1]=0
empty rc[3]=0
empty l1[0]=C+END
empty cut=3K
empty cut=4K+8
empty cut=4K
`);

/** Refcount table and blocks. */
export const refcountCases = lines(`
plain rt[0]=0
plain rt[0]=1
plain rt[0]=RB+1
plain rt[0]=RB+0x100
plain rt[0]=RB+512
plain rt[0]=0xffff2a00
plain rt[0]=0x0100000000002000
plain rt[0]=RT
plain rt[0]=L1
plain rt[0]=L2
plain rt[0]=5K
plain rt[0]=END
plain rt[0]=END+3K
plain rt[0]=END+3000K
plain rt[0]=0x7ffffffffffff000
plain rt[0]=0x00fffffffffff000
plain rt[1]=RB
plain rt[1]=END
plain rt[1]=END+5K
plain rt[1]=END+1
plain rt[1]=RB+512
plain rt[1]=RT
plain rt[1]=L1
plain rt[1]=5K
plain rt[1]=2
plain rt[1]=0x0200000000000000
plain rt[2]=END rt[3]=END+1K
plain rt[511]=END
plain rt[511]=RB
plain rt[511]=END+1
plain rt[1]=END rc[5]=2
plain rt[1]=END rc[5]=0
plain rt[1]=END l2[0]=5K
plain rt[0]=0 l2[0]=5K
plain rt[0]=0 l2[0]=C+5K+513
plain rt[0]=0 l2[0]=C+5K+2
plain rt[0]=0 l1[0]=L2
plain rt[0]=0 @79:1=1
plain rt[0]=0 @79:1=2
plain rt[0]=0 @79:1=3
plain rc[5]=0 @79:1=2
plain rc[5]=3 @79:1=1
plain rc[5]=3 @79:1=2
plain l2[0]=C+5K+2 @79:1=2
plain @79:1=1
plain @79:1=2
plain @79:1=3
plain @48:8=0
plain @48:8=L1
plain @48:8=L2
plain @48:8=5K
plain @48:8=END
plain @48:8=END+3K
plain @48:8=END+3000K
plain @56:4=2
plain @56:4=20
plain @56:4=100
plain @56:4=0
plain @99:1=3
plain @99:1=5
plain @99:1=0
plain @99:1=6
snap rt[0]=0
snap rt[0]=END
snap rt[0]=RB+1
snap rt[0]=SN
snap @48:8=SN
ext rt[0]=0
ext rc[5]=0
ext rc[5]=3
data rt[0]=0
data rc[3]=0
bitmaps rt[0]=0
bitmaps rc[6]=0
bitmaps rc[7]=4
bitmaps rc[8]=4
bitmaps rc[9]=0
narrow rt[0]=0
narrow rt[0]=END
wide rt[0]=0
wide rt[0]=END
old rt[0]=0
old rt[0]=RB+1
old rt[0]=END
tiny cut=20K
tiny cut=300K
tiny rt[0]=0 rt[1]=0
tiny rt[0]=0 rt[1]=0 rt[2]=0
tiny @48:8=0
tiny @48:8=END+512
tiny rt[63]=END
tiny rt[60]=RB
empty rt[0]=0
empty rt[0]=END+100K
`);

/** Extended entries, data files, snapshots and bitmaps. */
export const otherCases = lines(`
ext
ext lb[0]=0x0000000100000001
ext lb[0]=0xffffffffffffffff
ext lb[0]=0
ext lb[0]=0xffffffff00000000
ext lb[1]=1
ext lb[1]=0x0000000100000000
ext lb[5]=1
ext lb[5]=0xffffffffffffffff
ext lb[50]=1
ext lb[4]=1
ext lb[4]=0x0000000100000000
ext lb[4]=1 l2[0]=5K
ext lb[0]=0 l2[0]=C+5K+512
ext lb[0]=0 l2[0]=5K+512
ext lb[0]=0xffffffff00000000 l2[0]=C+5K+512
ext lb[0]=1 l2[0]=C+5K+512
ext l2[0]=C+5K+1
ext l2[0]=5K
ext l2[0]=C
ext l2[0]=1
ext l2[8]=1
ext l2[8]=C+5K
ext l2[2]=C+5K
ext lb[2]=0x0000000100000001 rc[5]=0
ext l2[4]=Z+C+0x20000
ext l2[4]=Z+END+9K
ext l2[4]=0
data
data l2[0]=0
data l2[0]=5K
data l2[1]=C
data l2[1]=1K
data l2[1]=C+1K+512
data l2[1]=C+1K+513
data l2[1]=1K+513
data l2[1]=C+100000K
data l2[2]=Z+1K
data l2[2]=Z+C+1K
data l2[16]=C+1
data l2[16]=C+16K+513
data l2[0]=2
data l1[0]=L2
data rc[4]=2
data l2[1]=C+2K
data @79:1=5
data @60:4=1 @64:8=0
snap sn+0:8=S1+512
snap sn+0:8=END
snap sn+0:8=END+9K
snap sn+0:8=0
snap sn+0:8=L1
snap sn+0:8=0xffffffffffffffff
snap sn+8:4=0
snap sn+8:4=1
snap sn+8:4=100
snap sn+8:4=0x40000000
snap sn+8:4=0xffffffff
snap sn+12:2=0
snap sn+12:2=5000
snap sn+14:2=0
snap sn+14:2=60000
snap sn+36:4=0
snap sn+36:4=8
snap sn+36:4=15
snap sn+36:4=16
snap sn+36:4=32
snap sn+36:4=1024
snap sn+36:4=1025
snap sn+36:4=2000
snap sn+36:4=0x40000000
snap sn+36:4=0xffffffff
snap sn+36:4=0 rc[5]=0
snap sn+36:4=0 rc[6]=9
snap sn+36:4=1025 rt[0]=0
snap sn+48:8=0
snap @60:4=0
snap @60:4=1
snap @60:4=3
snap @60:4=9
snap @64:8=0
snap @64:8=L1
snap @64:8=L2
snap @64:8=SN+8
snap @64:8=SN+512
snap @64:8=END
snap @64:8=END+7K
snap @64:8=END+7000K
snap @64:8=0xfffffffffffff000
snap @60:4=1 @64:8=SN+1
snap @79:1=1
snap @79:1=2 sn+36:4=0
empty @60:4=1
empty @60:4=1 @64:8=3K
empty @64:8=5
empty @60:4=1 @64:8=END
old @60:4=1 @64:8=END
bitmaps
bitmaps bd+0:8=0
bitmaps bd+0:8=BT+512
bitmaps bd+0:8=END+9K
bitmaps bd+8:4=0
bitmaps bd+8:4=2
bitmaps bd+8:4=0x10000000
bitmaps bd+12:4=0
bitmaps bd+12:4=1
bitmaps bd+12:4=3
bitmaps bd+12:4=4
bitmaps bd+16:1=0
bitmaps bd+16:1=2
bitmaps bd+17:1=8
bitmaps bd+17:1=9
bitmaps bd+17:1=32
bitmaps bd+18:2=0
bitmaps bd+18:2=2
bitmaps bd+18:2=2000
bitmaps bd+20:4=1
bitmaps bd+20:4=0xffffffff
bitmaps bt[0]=1
bitmaps bt[0]=2
bitmaps bt[0]=5K
bitmaps bt[0]=5K+512
bitmaps bt[0]=END
bitmaps bt[0]=END+8K
bitmaps bt[0]=C+5K
bitmaps bd+12:4=1 bt[0]=5K
bitmaps bd+12:4=1 bt[0]=END+8K
bitmaps bd+12:4=1 bt[0]=5K+512
bitmaps bx+0:4=0
bitmaps bx+0:4=1
bitmaps bx+0:4=3
bitmaps bx+0:4=70000
bitmaps bx+4:4=1
bitmaps bx+8:8=0
bitmaps bx+8:8=32
bitmaps bx+8:8=63
bitmaps bx+8:8=72
bitmaps bx+8:8=0x8000000000
bitmaps bx+16:8=0
bitmaps bx+16:8=BD+512
bitmaps bx+16:8=END
bitmaps bx+16:8=END+9K
bitmaps @95:1=0
bitmaps @95:1=2
bitmaps @95:1=5
bitmaps @79:1=1
bitmaps @79:1=2
lazy @79:1=1
lazy @79:1=1 rc[5]=2
lazy @79:1=3 rc[5]=0
`);

function lines(text: string): readonly string[] {
  return text.trim().split("\n");
}
