/* real - the type of the sources named *_real.c, which are compiled twice: as they stand, in fp32,
 * and with SPINSHARD_F64 defined, in fp64 for tests. They are written with the fp32 names; in the
 * second compile those below mean their fp64 twins. Headers declare both by hand.
 * Not for headers, and the last include of such a source: what is declared after it would be
 * renamed. Adding a public function to such a source: declare both in its header, and name it here;
 * tests/unit/twin_symbols.py compares the two lists. */
#ifndef SPINSHARD_BASE_REAL_H
#define SPINSHARD_BASE_REAL_H

#ifndef SPINSHARD_F64
typedef float real;
#else
typedef double real;

/* base/ and the compiler's */
#define __m512                        __m512d
#define _mm512_fmadd_ps               _mm512_fmadd_pd
#define gemm_f32                      gemm_f64
#define gemm_tile_f32                 gemm_tile_f64
#define logf                          log
#define vec_exp                       exp
#define vec_silu                      vec_silu_f64

/* quant/ */
#define fake_quant_rows               fake_quant_rows_f64
#define quant_code                    quant_code_f64
#define quant_scale_asym              quant_scale_asym_f64
#define quant_scale_sym               quant_scale_sym_f64
#define quant_zero_asym               quant_zero_asym_f64

/* rotations/ */
#define core_f32                      core_f64 /* of an fwht */
#define fwht_core_f32                 fwht_core_f64
#define fwht_fill_core_f32            fwht_fill_core_f64
#define fwht_rows_f32                 fwht_rows_f64
#define inverse32                     inverse /* of a scale_vector */
#define rotation_apply_f32            rotation_apply_f64
#define rotation_copy_rows_f32        rotation_copy_rows_f64
#define rotation_hadamard_rows_f32    rotation_hadamard_rows_f64
#define rotation_small_dense_rows_f32 rotation_small_dense_rows_f64
#define s32                           s /* of a scale_vector */
#define scale_times_f32               scale_times_f64

/* model/ */
#define attention_backward_f32        attention_backward_f64
#define attention_backward_query_f32  attention_backward_query_f64
#define attention_f32                 attention_f64
#define attention_product_f32         attention_product_f64
#define block_backward_f32            block_backward_f64
#define block_forward_f32             block_forward_f64
#define block_site_f32                block_site_f64
#define block_step_add_f32            block_step_add_f64
#define block_step_input_f32          block_step_input_f64
#define loss_logits_f32               loss_logits_f64
#define loss_nll_f32                  loss_nll_f64
#define mlp_mid_f32                   mlp_mid_f64
#define norm_add_bias_f32             norm_add_bias_f64
#define norm_backward_f32             norm_backward_f64
#define norm_factors_f32              norm_factors_f64
#define norm_row_factors_f32          norm_row_factors_f64
#define norm_rows_f32                 norm_rows_f64
#define norm_scale_f32                norm_scale_f64
#define objective_backward_f32        objective_backward_f64
#define objective_teacher_f32         objective_teacher_f64
#define rope_fill_tables_f32          rope_fill_tables_f64
#define rope_head_backward_f32        rope_head_backward_f64
#define rope_head_f32                 rope_head_f64
#define site_apply_f32                site_apply_f64
#define site_backward_f32             site_backward_f64
#define site_end_slopes_f32           site_end_slopes_f64
#define site_ends_f32                 site_ends_f64
#define site_save_f32                 site_save_f64
#define site_range_rows_f32           site_range_rows_f64
#define site_scale_backward_f32       site_scale_backward_f64
#define site_scale_f32                site_scale_f64
#define site_then_f32                 site_then_f64
#define site_rotate_f32               site_rotate_f64
#define site_widen_f32                site_widen_f64
#define wmat_expand_f32               wmat_expand_f64

#endif
#endif
