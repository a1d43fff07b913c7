"""Mean and variance of features by bucket of their label, from batches and processes of any number.

`fds.py` smooths them over the buckets (section 3.2 of "Delving into Deep Imbalanced Regression").
"""

import torch
import torch.distributed as dist

# On the CPU, temporaries hold this many numbers (512 KiB of float32): they stay in the processor's
# cache, and grow neither with the samples nor with the buckets.
PIECE_NUMEL = 2**17
GPU_PIECE_NUMEL = 2**22  # enough to keep one busy, little next to its memory
CHUNK_ROWS = 2**15  # more of them are added up in parts, which float32 holds
NARROW = ("mps",)  # devices without float64


def widest(tensor):
    """Return a tensor in float64 or, on a device that has none (Apple's MPS), in float32."""
    return tensor.float() if tensor.device.type in NARROW else tensor.double()


def piece_numel(device):
    """Return how many numbers the temporaries of a device hold."""
    return PIECE_NUMEL if device.type == "cpu" else GPU_PIECE_NUMEL


def blocks_of(statistics, numel=2**14):
    """Return slices of the buckets of statistics [B, D], each of about so many numbers."""
    step = max(4, numel // statistics.shape[1])
    return [slice(start, start + step) for start in range(0, len(statistics), step)]


class BucketMoments:
    """Count, mean and sum of squared deviations of features by bucket, in float64.

    Batches and processes are merged by Chan's formula, which cancels no digits: O(B·D) memory
    however many samples come.
    """

    def __init__(self, count, mean, squares):
        self.count, self.mean, self.squares = map(widest, (count, mean, squares))

    @classmethod
    def empty(cls, like):
        """Moments of nothing, on the device of `like` [B, D]."""
        zeros = torch.zeros_like(like, dtype=widest(like[:0]).dtype)
        return cls(zeros[:, 0].clone(), zeros, zeros.clone())

    @property
    def parts(self):
        """Count [B], mean [B, D] and sum of squared deviations [B, D]."""
        return self.count, self.mean, self.squares

    def add(self, rows, bucket):
        """Add features of some buckets.

        Args:
            rows: [M, D], any floating type; up to CHUNK_ROWS of them keep float32's digits.
            bucket: long [M], 0 ... B; samples of the bucket B, which does not exist, are left out.
        """
        (M, D), B = rows.shape, len(self.count)
        if not M:
            return
        on_cpu = rows.device.type == "cpu"
        # A GPU adds up in float64, where no order of the terms shows, and waits for nothing.
        digits = torch.promote_types(
            rows.dtype, torch.float32 if on_cpu else widest(rows[:0]).dtype
        )
        step = max(1, piece_numel(rows.device) // D)
        count = torch.zeros(B + 1, dtype=torch.long, device=rows.device)
        count.index_add_(0, bucket, torch.ones_like(bucket))
        present = slice(0, B)
        if on_cpu and M < B:  # of many buckets only those that the batch holds are touched
            present = count[:B].nonzero()[:, 0]
            bucket = ((count > 0).cumsum(0) - 1)[bucket]
            count = torch.cat([count[present], count[B:]])
        total = BucketMoments(*(part[present] for part in self.parts))
        # Sums are taken about the mean so far or, in a new bucket, about one of its samples.
        pivot = torch.zeros(len(count), D, dtype=digits, device=rows.device)
        pivot[:-1] = total.mean
        known = total.count > 0
        if not (on_cpu and known.all()):
            one = torch.zeros_like(count)
            one.scatter_reduce_(0, bucket, torch.arange(M, device=rows.device), "amax")
            pivot[:-1] = torch.where(known.unsqueeze(1), pivot[:-1], rows[one[:-1]])
        sums, squares = torch.zeros_like(pivot), torch.zeros_like(pivot)
        scratch = torch.empty(min(M, step), D, dtype=digits, device=rows.device)
        for part, own in zip(rows.split(step), bucket.split(step)):
            deviations = torch.index_select(pivot, 0, own, out=scratch[: len(part)])
            torch.sub(part, deviations, out=deviations)
            sums.index_add_(0, own, deviations)
            squares.index_add_(0, own, deviations.square_())
        shift = sums / count.clamp(min=1).to(digits).unsqueeze(1)
        squares -= sums.mul_(shift)
        squares.clamp_(min=0)
        count, pivot, shift, squares = (part[:-1] for part in (count, pivot, shift, squares))
        for block in blocks_of(pivot, piece_numel(rows.device)):
            held = BucketMoments(*(part[block] for part in total.parts))
            held.merge(count[block], widest(pivot[block]) + shift[block], squares[block])
        if on_cpu and M < B:
            for part, new in zip(self.parts, total.parts):
                part[present] = new

    def merge(self, count, mean, squares):
        """Add the moments of other samples."""
        share = (count / (self.count + count).clamp(min=1)).unsqueeze(1)
        delta = mean - self.mean
        self.mean.addcmul_(delta, share)
        self.squares.add_(squares).addcmul_(delta.square_(), share * self.count.unsqueeze(1))
        self.count += count

    def reduce(self):
        """Merge the moments of all processes into these, in the order of their ranks."""
        if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
            return self
        for block in blocks_of(self.mean):
            gathered = []
            for part in self.parts:
                own = part[block].contiguous()
                gathered.append([torch.empty_like(own) for _ in range(dist.get_world_size())])
                dist.all_gather(gathered[-1], own)
            first, *others = zip(*gathered)
            total = BucketMoments(*first)
            for other in others:
                total.merge(*other)
            for part, whole in zip(self.parts, total.parts):
                part[block] = whole
        return self
