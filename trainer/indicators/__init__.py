"""Leading indicators: numbers that may announce trouble before a validation metric shows it. They change no bit.

On `train` lines, per block; <block> is block_00 and so on, embed (patches in, time, conditions) or head (last
modulation, patches out, closing convolution). The projector of an alignment is in none: it leaves during the run.

    I1  opt/<block>/rms_ratio               surprise of the gradient to AdamW's second moment; 1 is none
    I2  opt/<block>/second_moment           mean second moment of AdamW
        opt/<block>/second_moment_decay     its factor per step since the line before; beta2 means: no gradient came
        opt/second_moment_routed_to_dense   routed blocks by dense blocks, with TREAD
    I3  opt/<block>/update_to_weight        size of the update by size of the weights
    I4  opt/<block>/gradient_noise          variance of the gradient by the square of its mean

With probes, on the probe images:

    I5  opt/dense_routed_gap                how far the routed prediction is from the dense one, with TREAD; also per t
        opt/dense_routed_loss_gap           loss of the dense prediction minus that of the routed one, with TREAD
    I6  opt/ema_lag                         distance of the averaged weights, by the distance trained so far
        opt/ema_loss_gap                    loss of the averaged weights by that of the raw ones, minus 1

A quotient whose divisor is exactly 0 says nothing and is left out of its line.
"""
